"""The one contract that every backend keeps: ONNX bytes in, numbers and milliseconds out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trt_layermerge.core.device import DeviceInfo, Precision
from trt_layermerge.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:  # numpy.typing came with numpy 1.20; JetPack 5 has an older one
    Array = np.ndarray


class Runner(Protocol):
    """A network that is built, loaded and ready to run. A context manager that closes itself.

    Attributes:
        input_shapes: Shape by name of every input, in the order of the graph.
        output_names: Names of the outputs, in the order of the graph.
        warmup_ms: How long it must run before its times settle.
        method: How a burst is timed: ``call`` by the host's clock, on a GPU ``enqueue`` or
            ``graph`` by events around plain launches or around launches of a CUDA graph.
        enqueue_ms: What the host needs to launch one run without a graph; None off the GPU.
    """

    input_shapes: dict[str, tuple[int, ...]]
    output_names: tuple[str, ...]
    warmup_ms: float = 20.0
    method: str = "call"
    enqueue_ms: float | None = None

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the outputs by name for one batch of inputs by name.

        Raises:
            UsageError: If a name or a shape is not the network's.
            DeviceError: If the device refuses or fails.
        """
        ...

    def time_burst(self, count: int) -> list[float]:
        """Returns ms of each of ``count`` runs in a row, inputs already bound on the device.

        Raises:
            DeviceError: If the device refuses or fails.
        """
        ...

    def close(self) -> None:
        """Frees what the network holds; harmless when called twice."""
        ...

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Backend(Protocol):
    """A library on a device that runs networks.

    Attributes:
        name: The name that ``get_backend`` knows it by.
        int8_fallback: Float type of whatever an int8 network does not quantise.
    """

    name: str
    int8_fallback: Precision

    def device(self) -> DeviceInfo:
        """Returns what it measures on, as it goes into the key of every latency."""
        ...

    def precisions(self) -> tuple[Precision, ...]:
        """Returns the precisions that run as such, not through casts to another one."""
        ...

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
        """Returns a runner of an ONNX model, random inputs from ``seed`` bound for timing.

        Raises:
            DeviceError: If the model cannot be parsed or built; carries the collected messages.
            UnsupportedModelError: The same, where the library names what it does not know.
            CorruptInputError: The same, where the bytes are no ONNX model at all.
        """
        ...


def random_inputs(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype[Any]], seed: int
) -> dict[str, Array]:
    """Returns standard normal inputs by name; the same seed gives the same values everywhere.

    Whole numbers count or choose something, and zero is one of them everywhere: they are zero.

    Args:
        shapes: Shape by name, every dimension known.
        dtypes: Type by the same names.
        seed: Of all of them; they are drawn one after the other, in the order of ``shapes``.
    """
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape, dtype=np.float32).astype(dtypes[name])
        if np.issubdtype(dtypes[name], np.floating)
        else np.zeros(shape, dtypes[name])
        for name, shape in shapes.items()
    }


def check_inputs(shapes: Mapping[str, tuple[int, ...]], inputs: Mapping[str, Array]) -> None:
    """Checks names and shapes of inputs against those of a network.

    Raises:
        UsageError: If they differ; names both.
    """
    given = {name: array.shape for name, array in inputs.items()}
    if given != dict(shapes):
        raise UsageError(f"the network takes the inputs {dict(shapes)}, but was given {given}")
