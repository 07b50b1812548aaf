"""The few CUDA calls that running an engine needs, and which binding makes them here.

Three bindings stand behind one protocol, each imported in one file and only when it is asked for:
cuda-python, pycuda, and the CUDA runtime library itself through ctypes, which JetPack brings
without any package. All three use the device's primary context, which they share with TensorRT and
torch. Which GPU it is, where there are several, ``CUDA_VISIBLE_DEVICES`` decides.

Without a driver all three say so; that is tested with the real libraries. What lies behind a
working driver has been run on fakes only, never on a GPU.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol, cast

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

_OUT_OF_MEMORY = "out of memory"


class Cuda(Protocol):
    """The current GPU. Every call is checked and raises ``DeviceError``.

    Streams, events and graphs are handles of the binding; ``int(stream)`` is what TensorRT takes.

    Attributes:
        binding: Its name.
        no_graphs: Why it cannot capture graphs, or None where it can.
    """

    binding: str
    no_graphs: str | None

    def device_name(self) -> str:
        """Returns the name of the GPU."""
        ...

    def compute_capability(self) -> str:
        """Returns the compute capability, such as ``8.7``."""
        ...

    def version(self) -> str:
        """Returns the version of CUDA that the binding uses, such as ``12.6``."""
        ...

    def free_memory(self) -> int:
        """Returns the free bytes of the GPU's memory."""
        ...

    def total_memory(self) -> int:
        """Returns all bytes of the GPU's memory, which on a Jetson is the host's too."""
        ...

    def allocate(self, size_bytes: int) -> int:
        """Returns the address of new device memory."""
        ...

    def free(self, address: int) -> None:
        """Gives device memory back."""
        ...

    def upload(self, address: int, array: Array) -> None:
        """Copies a contiguous host array to the device, and waits until it is there."""
        ...

    def download(self, array: Array, address: int) -> None:
        """Fills a contiguous host array from the device, and waits."""
        ...

    def stream(self) -> Any:
        """Returns a new stream that does not wait for the default one."""
        ...

    def wait(self, stream: Any) -> None:
        """Returns when everything in a stream is done; spins, so that waking takes no time."""
        ...

    def destroy_stream(self, stream: Any) -> None:
        """Gives a stream back."""
        ...

    def event(self) -> Any:
        """Returns a new event that keeps its time."""
        ...

    def record(self, event: Any, stream: Any) -> None:
        """Marks the present end of a stream."""
        ...

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Returns ms between two events that have passed."""
        ...

    def destroy_event(self, event: Any) -> None:
        """Gives an event back."""
        ...

    def begin_capture(self, stream: Any) -> None:
        """Makes a stream note down what this thread puts into it, instead of doing it."""
        ...

    def end_capture(self, stream: Any) -> Any:
        """Returns what was noted down as a graph that can be launched."""
        ...

    def launch_graph(self, graph: Any, stream: Any) -> None:
        """Puts a whole graph into a stream."""
        ...

    def destroy_graph(self, graph: Any) -> None:
        """Gives a graph back."""
        ...


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
            module = import_module(f"trt_layermerge.backends.{_HOMES[name]}")
            return cast(Cuda, module.open_cuda())
        except DeviceError as error:
            errors.append(error)
    # What is installed and fails tells more than what is not installed.
    raise next((e for e in errors if not isinstance(e, MissingDependencyError)), errors[0])


def gpu_name(cuda: Cuda) -> str:
    """Returns the name of the GPU, with its board's on a Jetson."""
    return with_board(cuda.device_name())


def driver_problem() -> str | None:
    """Returns why no GPU can be used here, or None where one can."""
    try:
        find_cuda()
    except DeviceError as error:
        return str(error)
    return None


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


def cuda_failure(text: str, *, sticky: bool) -> DeviceError:
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


def version_words(number: int) -> str:
    """Returns a CUDA version number such as 12060 as ``12.6``."""
    return f"{number // 1000}.{number % 1000 // 10}"
