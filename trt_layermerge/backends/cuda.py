"""The few CUDA calls that running an engine needs: the one file that imports a CUDA binding.

Without a driver, ``driver_problem`` says so and ``Cuda()`` refuses; both are tested. What lies
behind a working driver (memory, streams, events) has been run on a fake only, never on a GPU.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from trt_layermerge.backends.base import Array
from trt_layermerge.errors import DeviceError, MissingDependencyError

# cuda-python moved its module with version 12.6.
_HOMES = ("cuda.bindings.runtime", "cuda.cudart")


def driver_problem() -> str | None:
    """Returns why no GPU can be used here, or None where one can."""
    try:
        Cuda()
    except DeviceError as error:
        return str(error)
    return None


class Cuda:
    """The current GPU. Every call is checked; streams, events and memory are plain handles."""

    def __init__(self, runtime: Any = None) -> None:
        """Takes the binding's module, or finds it.

        Raises:
            MissingDependencyError: If cuda-python is not installed.
            DeviceError: If there is no driver or no GPU.
        """
        self._rt = runtime or _import_runtime()
        status, count = self._rt.cudaGetDeviceCount()
        if int(status) or not count:
            raise DeviceError(
                f"no CUDA driver or GPU can be used here ({self._words(status)}); type nvidia-smi "
                "to see the driver, run where the GPU is, or choose --backend onnxruntime"
            )

    def device_name(self) -> str:
        """Returns the name of the GPU."""
        name = self._properties().name
        return name.decode() if isinstance(name, bytes) else str(name)

    def compute_capability(self) -> str:
        """Returns the compute capability, such as ``8.7``."""
        properties = self._properties()
        return f"{properties.major}.{properties.minor}"

    def version(self) -> str:
        """Returns the version of the CUDA runtime, such as ``12.6``."""
        return version_words(int(self._call("cudaRuntimeGetVersion")))

    def allocate(self, size_bytes: int) -> int:
        """Returns the address of new device memory."""
        return int(self._call("cudaMalloc", size_bytes))

    def free(self, address: int) -> None:
        """Gives device memory back."""
        self._call("cudaFree", address)

    def upload(self, address: int, array: Array) -> None:
        """Copies a contiguous host array to the device, and waits."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpy", address, array.ctypes.data, array.nbytes, kind)

    def download(self, array: Array, address: int) -> None:
        """Fills a contiguous host array from the device, and waits."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpy", array.ctypes.data, address, array.nbytes, kind)

    def stream(self) -> Any:
        """Returns a new stream that does not wait for the default one."""
        return self._call("cudaStreamCreateWithFlags", self._rt.cudaStreamNonBlocking)

    def event(self) -> Any:
        """Returns a new event that keeps its time."""
        return self._call("cudaEventCreateWithFlags", self._rt.cudaEventDefault)

    def record(self, event: Any, stream: Any) -> None:
        """Marks the present end of a stream."""
        self._call("cudaEventRecord", event, stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Returns ms between two events that have passed."""
        return float(self._call("cudaEventElapsedTime", start, end))

    def wait(self, stream: Any) -> None:
        """Returns when everything in a stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_events(self, events: list[Any]) -> None:
        """Gives events back."""
        for event in events:
            self._call("cudaEventDestroy", event)

    def destroy_stream(self, stream: Any) -> None:
        """Gives a stream back."""
        self._call("cudaStreamDestroy", stream)

    def _properties(self) -> Any:
        return self._call("cudaGetDeviceProperties", self._call("cudaGetDevice"))

    def _call(self, name: str, *arguments: Any) -> Any:
        """Returns what a runtime function returns besides its status. Raises ``DeviceError``."""
        status, *values = getattr(self._rt, name)(*arguments)
        if int(status):
            raise DeviceError(
                f"{name} failed: {self._words(status)}; a failed GPU context does not recover, "
                "type the same command again to continue in a new process"
            )
        return values[0] if values else None

    def _words(self, status: Any) -> str:
        _, text = self._rt.cudaGetErrorString(status)
        return text.decode() if isinstance(text, bytes) else str(text)


def version_words(number: int) -> str:
    """Returns a CUDA version number such as 12060 as ``12.6``."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _import_runtime() -> Any:
    for home in _HOMES:
        try:
            return import_module(home)
        except ImportError:
            continue
    raise MissingDependencyError("cuda-python", "running engines on a GPU", "cuda")
