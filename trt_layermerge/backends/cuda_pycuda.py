"""The CUDA driver through pycuda, in the manner of the runtime.

pycuda has no graphs. Its streams are the driver's own, so that the CUDA runtime library captures
them where it can be loaded; elsewhere runs are launched one by one.

Names and messages follow pycuda's sources; this file has been run on a fake of it, and without a
driver, never on a GPU.
"""

from __future__ import annotations

import atexit
import ctypes
import warnings
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Callable

from trt_layermerge.backends.cuda import Cuda
from trt_layermerge.backends.cuda_ctypes import Libcudart, Names, load_libcudart
from trt_layermerge.errors import DeviceError, MissingDependencyError

# pycuda gives no codes, but the driver's words for them; see ``cuda.STICKY_CODES``.
_STICKY_WORDS = (
    "hardware error",
    "illegal memory access",
    "launch timed out",
    "device-side assert",
    "hardware stack error",
    "illegal instruction",
    "misaligned address",
    "operation not supported on global/shared address space",
    "invalid program counter",
    "unspecified launch failure",
    "tensor memory not completely freed",
    "MPS client has been terminated",
    "outside of CUDA",
)
_STICKY, _OTHER = 719, 999  # cudaErrorLaunchFailure, cudaErrorUnknown


def open_cuda() -> Cuda:
    """Returns the GPU.

    Raises:
        MissingDependencyError: If pycuda is not installed.
        DeviceError: If it does not import, or there is no driver or no GPU.
    """
    driver, library, reason = _driver(), None, None
    try:
        library = Libcudart(load_libcudart())
        Cuda(library, "ctypes")  # makes waiting spin, which counts only before a context is there
    except DeviceError as error:
        library, reason = None, f"pycuda has no CUDA graphs, and the CUDA runtime fails: {error}"
    return Cuda(Pycuda(driver, library), "pycuda", reason)


class Pycuda(Names):
    """The first GPU through ``pycuda.driver``, its primary context made current.

    Has cuda-python's convention: every function returns status and outputs.

    Args:
        driver: The module ``pycuda.driver``.
        library: What captures graphs, or None.
    """

    def __init__(self, driver: Any, library: Any) -> None:
        self._driver, self._library = driver, library
        self._allocations: dict[int, Any] = {}
        self._own: dict[str, Callable[..., Any]] = {
            "cudaGetDeviceCount": self._count,
            "cudaGetDeviceProperties": self._properties,
            "cudaMalloc": self._allocate,
            "cudaMemcpy": self._copy,
            "cudaSetDeviceFlags": lambda flags: None,  # the library has, if it is there
            "cudaGetDevice": lambda: 0,
            "cudaRuntimeGetVersion": lambda: _version(*driver.get_version()),
            "cudaMemGetInfo": lambda: driver.mem_get_info(),
            "cudaFree": lambda address: self._allocations.pop(address).free(),
            "cudaDeviceSynchronize": lambda: driver.Context.synchronize(),
            "cudaStreamCreateWithFlags": lambda flags: _Stream(driver.Stream(flags)),
            "cudaStreamSynchronize": lambda stream: stream.inner.synchronize(),
            "cudaStreamDestroy": lambda stream: stream.leave(),
            "cudaEventCreateWithFlags": lambda flags: driver.Event(flags),
            "cudaEventRecord": lambda event, stream: event.record(stream.inner),
            "cudaEventElapsedTime": lambda start, end: start.time_till(end),
            "cudaEventDestroy": lambda event: None,  # pycuda frees what nobody has any more
        }

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        """Returns a function of the runtime that pycuda does, or else the library."""
        own = self._own.get(name)

        def by_pycuda(*arguments: Any) -> tuple[Any, ...]:
            assert own is not None
            try:
                found = own(*arguments)
            except self._driver.Error as error:
                return _Status.of(error), None
            return (0, *(found if isinstance(found, tuple) else (found,)))

        def by_library(*arguments: Any) -> tuple[Any, ...]:
            plain = [int(a) if isinstance(a, _Stream) else a for a in arguments]
            answer: tuple[Any, ...] = getattr(self._library, name)(*plain)
            return answer

        return by_pycuda if own else by_library

    def cudaGetErrorString(self, status: int) -> tuple[int, Any]:
        """Returns success and the words for a status."""
        if isinstance(status, _Status):
            return 0, status.words
        return 0, self._library.cudaGetErrorString(status)[1]

    def cudaGetLastError(self) -> None:
        """Has the library forget its last error."""
        if self._library is not None:
            self._library.cudaGetLastError()

    def _count(self) -> int:
        self._device = _primary_device(self._driver)
        return 1

    def _properties(self, _: int) -> SimpleNamespace:
        major, minor = self._device.compute_capability()
        return SimpleNamespace(name=self._device.name(), major=major, minor=minor)

    def _allocate(self, size: int) -> int:
        allocation = self._driver.mem_alloc(size)
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice:
            self._driver.memcpy_htod(target, (ctypes.c_char * size).from_address(source))
        else:
            self._driver.memcpy_dtoh((ctypes.c_char * size).from_address(target), source)


class _Stream:
    """pycuda's stream, with the address that TensorRT takes."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __int__(self) -> int:
        return int(self.inner.handle)

    def leave(self) -> None:
        self.inner = None


class _Status(int):
    """A status that knows its words."""

    words: str

    @staticmethod
    def of(error: Exception) -> _Status:
        said = str(error)
        status = _Status(_STICKY if any(words in said for words in _STICKY_WORDS) else _OTHER)
        status.words = said.partition(" failed: ")[2] or said
        return status


def _version(major: int, minor: int, *_: int) -> int:
    return 1000 * major + 10 * minor


@lru_cache(maxsize=None)
def _primary_device(driver: Any) -> Any:
    """Returns the first GPU, its primary context current until the process ends.

    pycuda aborts a process that ends with a context on its stack.
    """
    driver.init()
    device = driver.Device(0)
    context = device.retain_primary_context()
    context.push()

    def leave() -> None:
        with suppress(driver.Error):
            context.pop()

    atexit.register(leave)
    return device


def _driver() -> Any:
    try:
        with warnings.catch_warnings():  # it warns of a missing driver before it fails
            warnings.simplefilter("ignore", UserWarning)
            return import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "pycuda", "running engines through pycuda", "pycuda"
        ) from error
    except ImportError as error:
        raise DeviceError(
            f"pycuda is installed, but does not import ({error}); it needs the NVIDIA driver, and "
            "must have been compiled for this one: pip install --force-reinstall pycuda"
        ) from error
