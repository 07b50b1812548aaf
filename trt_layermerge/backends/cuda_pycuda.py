"""The CUDA driver through pycuda.

pycuda has no graphs. Its streams are the driver's own, so that the CUDA runtime library captures
them where it can be loaded; elsewhere runs are launched one by one.

Names and messages follow pycuda's sources; this file has been run on a fake of it, and without a
driver, never on a GPU.
"""

from __future__ import annotations

import atexit
import warnings
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from typing import Any, Callable

from trt_layermerge.backends.base import Array
from trt_layermerge.backends.cuda import Cuda, cuda_failure, no_driver
from trt_layermerge.backends.cuda_ctypes import open_cuda as open_runtime
from trt_layermerge.errors import DeviceError, MissingDependencyError

_NON_BLOCKING = 1

# pycuda gives no codes, but the driver's words for them; see ``cuda_runtime.STICKY_CODES``.
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


def open_cuda() -> Cuda:
    """Returns the GPU.

    Raises:
        MissingDependencyError: If pycuda is not installed.
        DeviceError: If it does not import, or there is no driver or no GPU.
    """
    driver = _driver()
    try:
        runtime, reason = open_runtime(), None
    except DeviceError as error:
        runtime, reason = None, f"pycuda has no CUDA graphs, and the CUDA runtime fails: {error}"
    return PycudaCuda(driver, runtime, reason)


class PycudaCuda(Cuda):
    """The first GPU through ``pycuda.driver``, its primary context made current.

    Args:
        driver: The module ``pycuda.driver``.
        runtime: What captures graphs, or None. It also makes waiting spin, if it comes first.
        no_graphs: Why nothing does.

    Raises:
        DeviceError: If there is no driver or no GPU.
    """

    binding = "pycuda"

    def __init__(self, driver: Any, runtime: Cuda | None, no_graphs: str | None) -> None:
        self._driver, self._runtime, self.no_graphs = driver, runtime, no_graphs
        try:
            self._device = _primary_device(driver)
        except driver.Error as error:
            raise no_driver(str(error)) from error
        self._allocations: dict[int, Any] = {}

    def device_name(self) -> str:
        """Returns the name of the GPU."""
        return str(self._call(self._device.name))

    def compute_capability(self) -> str:
        """Returns the compute capability, such as ``8.7``."""
        return ".".join(map(str, self._call(self._device.compute_capability)))

    def version(self) -> str:
        """Returns the version of CUDA that pycuda was compiled for, such as ``12.6``."""
        return ".".join(map(str, self._driver.get_version()[:2]))

    def free_memory(self) -> int:
        """Returns the free bytes of the GPU's memory."""
        return int(self._call(self._driver.mem_get_info)[0])

    def total_memory(self) -> int:
        """Returns all bytes of the GPU's memory."""
        return int(self._call(self._driver.mem_get_info)[1])

    def allocate(self, size_bytes: int) -> int:
        """Returns the address of new device memory."""
        allocation = self._call(self._driver.mem_alloc, size_bytes)
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        """Gives device memory back."""
        self._call(self._allocations.pop(address).free)

    def upload(self, address: int, array: Array) -> None:
        """Copies a contiguous host array to the device, and waits."""
        self._call(self._driver.memcpy_htod, address, array)
        self._call(self._driver.Context.synchronize)

    def download(self, array: Array, address: int) -> None:
        """Fills a contiguous host array from the device, and waits."""
        self._call(self._driver.memcpy_dtoh, array, address)

    def stream(self) -> _Stream:
        """Returns a new stream that does not wait for the default one."""
        return _Stream(self._call(self._driver.Stream, _NON_BLOCKING))

    def wait(self, stream: _Stream) -> None:
        """Returns when everything in a stream is done."""
        self._call(stream.inner.synchronize)

    def destroy_stream(self, stream: _Stream) -> None:
        """Gives a stream back."""
        stream.inner = None

    def event(self) -> Any:
        """Returns a new event that keeps its time; pycuda gives it back once nobody has it."""
        return self._call(self._driver.Event)

    def record(self, event: Any, stream: _Stream) -> None:
        """Marks the present end of a stream."""
        self._call(event.record, stream.inner)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Returns ms between two events that have passed."""
        return float(self._call(start.time_till, end))

    def destroy_event(self, event: Any) -> None:
        """Does nothing: see ``event``."""

    def begin_capture(self, stream: _Stream) -> None:
        """Captures what this thread puts into a stream, by the CUDA runtime."""
        self._graphs().begin_capture(int(stream))

    def end_capture(self, stream: _Stream) -> Any:
        """Returns what was captured as a graph that can be launched."""
        return self._graphs().end_capture(int(stream))

    def launch_graph(self, graph: Any, stream: _Stream) -> None:
        """Puts a whole graph into a stream."""
        self._graphs().launch_graph(graph, int(stream))

    def destroy_graph(self, graph: Any) -> None:
        """Gives a graph back."""
        self._graphs().destroy_graph(graph)

    def _graphs(self) -> Cuda:
        if self._runtime is None:
            raise DeviceError(str(self.no_graphs))
        return self._runtime

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.Error as error:
            text = str(error)
            sticky = any(words in text for words in _STICKY_WORDS)
            raise cuda_failure(text, sticky=sticky) from error


class _Stream:
    """pycuda's stream, with the address that TensorRT takes."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __int__(self) -> int:
        return int(self.inner.handle)


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
