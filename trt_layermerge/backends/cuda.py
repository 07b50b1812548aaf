"""The few CUDA calls that running an engine needs, and which binding makes them here.

One class calls the CUDA runtime by cuda-python's convention: a function takes its inputs and
returns its status followed by its outputs. Three files bring a runtime of that convention, each
imported only when it is asked for: cuda-python itself, pycuda, and libcudart through ctypes, which
JetPack brings without any package. All use the device's primary context, which they share with
TensorRT and torch. Which GPU it is, where there are several, ``CUDA_VISIBLE_DEVICES`` decides.

Without a driver all three say so; that is tested with the real libraries. What lies behind a
working driver has been run on fakes only, never on a GPU.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from trt_layermerge.backends.base import Array
from trt_layermerge.backends.host import with_board
from trt_layermerge.errors import (
    DeviceError,
    MissingDependencyError,
    StickyDeviceError,
    UsageError,
)

# Modules beside this one, by the name of their binding, in the order in which they are tried.
_HOMES = {"cuda-python": "cuda_python", "pycuda": "cuda_pycuda", "ctypes": "cuda_ctypes"}

BINDINGS: tuple[str, ...] = tuple(_HOMES)

STICKY_CODES = frozenset((226, 700, 702, 710, *range(714, 720), 721, 810, 911))
"""Errors of which ``driver_types.h`` says that the process must be ended and started again."""

_OUT_OF_MEMORY = "out of memory"


class Cuda:
    """The current GPU. Every call is checked and raises ``DeviceError``.

    Streams, events and graphs are handles of the runtime; ``int(stream)`` is what TensorRT takes.

    Args:
        runtime: A module, or what looks like one, with cuda-python's convention.
        binding: The name to go by.
        no_graphs: Why it cannot capture graphs, or None where it can.

    Raises:
        DeviceError: If there is no driver or no GPU.
    """

    def __init__(self, runtime: Any, binding: str, no_graphs: str | None = None) -> None:
        self._rt, self.binding, self.no_graphs = runtime, binding, no_graphs
        status, count = runtime.cudaGetDeviceCount()
        if int(status):
            raise no_driver(self._words(status))
        if not count:
            raise no_driver("it counts none")
        # Refused where torch was first to use the GPU; waiting then takes a little longer.
        runtime.cudaSetDeviceFlags(runtime.cudaDeviceScheduleSpin)
        runtime.cudaGetLastError()

    def device_name(self) -> str:
        """Returns the name of the GPU."""
        name = self._properties().name
        return name.decode() if isinstance(name, bytes) else str(name)

    def compute_capability(self) -> str:
        """Returns the compute capability, such as ``8.7``."""
        properties = self._properties()
        return f"{properties.major}.{properties.minor}"

    def version(self) -> str:
        """Returns the version of CUDA that the binding uses, such as ``12.6``."""
        number = int(self._call("cudaRuntimeGetVersion"))
        return f"{number // 1000}.{number % 1000 // 10}"

    def free_memory(self) -> int:
        """Returns the free bytes of the GPU's memory, which on a Jetson is the host's too."""
        return int(self._call("cudaMemGetInfo")[0])

    def allocate(self, size_bytes: int) -> int:
        """Returns the address of new device memory."""
        return int(self._call("cudaMalloc", size_bytes))

    def free(self, address: int) -> None:
        """Gives device memory back."""
        self._call("cudaFree", address)

    def upload(self, address: int, array: Array) -> None:
        """Copies a contiguous host array to the device, and waits until it is there.

        ``cudaMemcpy`` may return while the last bytes are on their way, and a stream of our own
        does not wait for them.
        """
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpy", address, array.ctypes.data, array.nbytes, kind)
        self._call("cudaDeviceSynchronize")

    def download(self, array: Array, address: int) -> None:
        """Fills a contiguous host array from the device, and waits."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpy", array.ctypes.data, address, array.nbytes, kind)

    def stream(self) -> Any:
        """Returns a new stream that does not wait for the default one."""
        return self._call("cudaStreamCreateWithFlags", self._rt.cudaStreamNonBlocking)

    def wait(self, stream: Any) -> None:
        """Returns when everything in a stream is done; spins, so that waking takes no time."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: Any) -> None:
        """Gives a stream back."""
        self._call("cudaStreamDestroy", stream)

    def event(self) -> Any:
        """Returns a new event that keeps its time."""
        return self._call("cudaEventCreateWithFlags", self._rt.cudaEventDefault)

    def record(self, event: Any, stream: Any) -> None:
        """Marks the present end of a stream."""
        self._call("cudaEventRecord", event, stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Returns ms between two events that have passed."""
        return float(self._call("cudaEventElapsedTime", start, end))

    def destroy_event(self, event: Any) -> None:
        """Gives an event back."""
        self._call("cudaEventDestroy", event)

    def begin_capture(self, stream: Any) -> None:
        """Makes a stream note down what this thread puts into it, instead of doing it."""
        if self.no_graphs is not None:
            raise DeviceError(self.no_graphs)
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Any) -> Any:
        """Returns what was noted down as a graph that can be launched."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            # Unlike cudaGraphInstantiate it takes the same arguments in every version from 11.4 on.
            return self._call("cudaGraphInstantiateWithFlags", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch_graph(self, graph: Any, stream: Any) -> None:
        """Puts a whole graph into a stream."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Gives a graph back."""
        self._call("cudaGraphExecDestroy", graph)

    def _properties(self) -> Any:
        return self._call("cudaGetDeviceProperties", self._call("cudaGetDevice"))

    def _call(self, name: str, *arguments: Any) -> Any:
        """Returns what a runtime function returns besides its status. Raises ``DeviceError``."""
        status, *values = getattr(self._rt, name)(*arguments)
        if int(status):
            self._rt.cudaGetLastError()  # else torch's next check takes it for its own
            raise _failure(f"{name} failed: {self._words(status)}", int(status) in STICKY_CODES)
        return values[0] if len(values) == 1 else tuple(values) or None

    def _words(self, status: Any) -> str:
        _, text = self._rt.cudaGetErrorString(status)
        return text.decode() if isinstance(text, bytes) else str(text)


def find_cuda(binding: str | None = None) -> Cuda:
    """Returns the GPU through the first binding that is installed and works, or through one.

    Args:
        binding: One of ``BINDINGS``, or None for the first that works.

    Raises:
        UsageError: If there is no such binding.
        MissingDependencyError: If the binding that is asked for is not installed.
        DeviceError: If there is no driver or no GPU.
    """
    if binding is not None and binding not in BINDINGS:
        raise UsageError(f"there is no CUDA binding {binding!r}; there are {', '.join(BINDINGS)}")
    errors: list[DeviceError] = []
    for name in (binding,) if binding else BINDINGS:
        try:
            found: Cuda = import_module(f"trt_layermerge.backends.{_HOMES[name]}").open_cuda()
            return found
        except DeviceError as error:
            errors.append(error)
    # What is installed and fails tells more than what is not installed.
    raise next((e for e in errors if not isinstance(e, MissingDependencyError)), errors[0])


def gpu_name(cuda: Cuda) -> str:
    """Returns the name of the GPU, with its board's on a Jetson."""
    return with_board(cuda.device_name())


def cuda_bindings() -> tuple[tuple[str, str | None], ...]:
    """Returns every binding's name, and what keeps it from working here, or None."""

    def problem(name: str) -> str | None:
        try:
            find_cuda(name)
        except DeviceError as error:
            return str(error)
        return None

    return tuple((name, problem(name)) for name in BINDINGS)


def no_driver(words: str) -> DeviceError:
    """Returns the error for a machine without a usable GPU, given what CUDA says of it."""
    return DeviceError(
        f"no CUDA driver or GPU can be used here ({words}); type nvidia-smi to see the driver, "
        "run where the GPU is, or choose --backend onnxruntime"
    )


def _failure(text: str, sticky: bool) -> DeviceError:
    """Returns the error for a failed call, given what failed and why; ``sticky`` ends a process."""
    if sticky:
        return StickyDeviceError(
            f"{text}; this process can no longer use the GPU: type the same command again to go on "
            "in a new one"
        )
    if _OUT_OF_MEMORY in text:
        return DeviceError(
            f"{text}; end other programs that use the GPU, nvidia-smi lists them, or choose a "
            "smaller --batch"
        )
    return DeviceError(f"{text}; type trt-layermerge doctor to check driver and libraries")
