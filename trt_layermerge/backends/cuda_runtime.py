"""The CUDA runtime behind the ``Cuda`` protocol, whoever calls it: cuda-python or ctypes."""

from __future__ import annotations

from typing import Any

from trt_layermerge.backends.base import Array
from trt_layermerge.backends.cuda import Cuda, cuda_failure, no_driver, version_words

STICKY_CODES = frozenset((226, 700, 702, 710, *range(714, 720), 721, 810, 911))
"""Errors of which ``driver_types.h`` says that the process must be ended and started again."""


class RuntimeCuda(Cuda):
    """The current GPU through the CUDA runtime.

    Args:
        runtime: A module, or what looks like one, with cuda-python's convention: a function of the
            runtime takes its inputs and returns its status followed by its outputs.
        binding: The name to go by.

    Raises:
        DeviceError: If there is no driver or no GPU.
    """

    no_graphs: str | None = None

    def __init__(self, runtime: Any, binding: str) -> None:
        self._rt, self.binding = runtime, binding
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
        """Returns the version of the CUDA runtime, such as ``12.6``."""
        return version_words(int(self._call("cudaRuntimeGetVersion")))

    def free_memory(self) -> int:
        """Returns the free bytes of the GPU's memory."""
        return int(self._call("cudaMemGetInfo")[0])

    def total_memory(self) -> int:
        """Returns all bytes of the GPU's memory."""
        return int(self._call("cudaMemGetInfo")[1])

    def allocate(self, size_bytes: int) -> int:
        """Returns the address of new device memory."""
        return int(self._call("cudaMalloc", size_bytes))

    def free(self, address: int) -> None:
        """Gives device memory back."""
        self._call("cudaFree", address)

    def upload(self, address: int, array: Array) -> None:
        """Copies a contiguous host array to the device, and waits.

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
        """Returns when everything in a stream is done."""
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
        """Captures what this thread puts into a stream; other threads are left alone."""
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Any) -> Any:
        """Returns what was captured as a graph that can be launched."""
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
            text = f"{name} failed: {self._words(status)}"
            raise cuda_failure(text, sticky=int(status) in STICKY_CODES)
        return values[0] if len(values) == 1 else tuple(values) or None

    def _words(self, status: Any) -> str:
        _, text = self._rt.cudaGetErrorString(status)
        return text.decode() if isinstance(text, bytes) else str(text)
