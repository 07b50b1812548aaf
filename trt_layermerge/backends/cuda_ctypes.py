"""The CUDA runtime through ctypes: works where JetPack is, without any package.

Signatures are those of ``cuda_runtime_api.h``, the same from CUDA 11.4 to 13.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

from trt_layermerge.backends.cuda import Cuda
from trt_layermerge.errors import DeviceError

_NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")

# Arguments in C's order; what is pointed to is returned. Handles are addresses.
_ADDRESS = POINTER(c_void_p)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaDeviceSynchronize": (),
    "cudaEventCreateWithFlags": (_ADDRESS, c_uint),
    "cudaEventDestroy": (c_void_p,),
    "cudaEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaFree": (c_void_p,),
    "cudaGetDevice": (POINTER(c_int),),
    "cudaGetDeviceCount": (POINTER(c_int),),
    "cudaGetLastError": (),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaGraphInstantiateWithFlags": (_ADDRESS, c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaMalloc": (_ADDRESS, c_size_t),
    "cudaMemGetInfo": (POINTER(c_size_t), POINTER(c_size_t)),
    "cudaMemcpy": (c_void_p, c_void_p, c_size_t, c_int),
    "cudaRuntimeGetVersion": (POINTER(c_int),),
    "cudaSetDeviceFlags": (c_uint,),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamCreateWithFlags": (_ADDRESS, c_uint),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamEndCapture": (c_void_p, _ADDRESS),
    "cudaStreamSynchronize": (c_void_p,),
}
_MAJOR, _MINOR = 75, 76  # of the compute capability, in cudaDeviceAttr


def open_cuda() -> Cuda:
    """Returns the GPU.

    Raises:
        DeviceError: If libcudart is not found, or there is no driver or no GPU.
    """
    return Cuda(Libcudart(load_libcudart()), "ctypes")


def load_libcudart() -> ctypes.CDLL:
    """Returns the first libcudart that loads: the system's, the toolkit's, a wheel's.

    Raises:
        DeviceError: If there is none.
    """
    for place in _places():
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    raise DeviceError(
        "neither cuda-python nor the CUDA runtime library libcudart was found; on a Jetson type "
        "sudo apt install nvidia-jetpack, elsewhere pip install 'trt-layermerge[cuda]'"
    )


def _places() -> Iterator[str]:
    yield from _NAMES
    yield "/usr/local/cuda/lib64/libcudart.so"
    for entry in sys.path:
        yield from map(str, sorted(Path(entry).glob("nvidia/*/lib/libcudart.so.*")))


class Names:
    """The constants that cuda-python has beside its functions."""

    cudaDeviceScheduleSpin, cudaEventDefault, cudaStreamNonBlocking = 1, 0, 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)


class Libcudart(Names):
    """The library with cuda-python's convention: every function returns status and outputs."""

    def __init__(self, library: Any) -> None:
        """Takes the loaded library."""
        self._library = library
        library.cudaGetErrorString.restype = c_char_p

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        """Returns a function of the library, which is made when it is first asked for."""
        if name not in _SIGNATURES:
            raise AttributeError(f"the signature of {name!r} is not known here")
        call = _function(getattr(self._library, name), _SIGNATURES[name])
        setattr(self, name, call)
        return call

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        """Returns success and the words for a status."""
        return 0, self._library.cudaGetErrorString(c_int(status))

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, SimpleNamespace | None]:
        """Returns status, name and compute capability.

        The structure of the properties differs between versions and is at most a few kilobytes
        long; the name is what it begins with in all of them.
        """
        properties = ctypes.create_string_buffer(1 << 16)
        status = self._library.cudaGetDeviceProperties(properties, c_int(device))
        if status:
            return status, None
        _, major = self.cudaDeviceGetAttribute(_MAJOR, device)
        status, minor = self.cudaDeviceGetAttribute(_MINOR, device)
        return status, SimpleNamespace(name=properties.value, major=major, minor=minor)


def _function(function: Any, signature: tuple[Any, ...]) -> Callable[..., tuple[Any, ...]]:
    """Returns a C function that takes its inputs and returns its status and its outputs."""
    function.argtypes, function.restype = signature, c_int
    pointed = {i: kind._type_ for i, kind in enumerate(signature) if _is_pointer(kind)}

    def call(*inputs: Any) -> tuple[Any, ...]:
        given = iter(inputs)
        filled = {i: kind() for i, kind in pointed.items()}
        arguments = [
            ctypes.byref(filled[i]) if i in filled else next(given) for i in range(len(signature))
        ]
        return (function(*arguments), *(value.value for value in filled.values()))

    return call


def _is_pointer(kind: Any) -> bool:
    return issubclass(kind, ctypes._Pointer)
