"""What goes into a loaded engine and what comes out: shapes, types, layouts."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from trt_layermerge.backends.tensorrt_api import TensorRTApi
from trt_layermerge.errors import DeviceError, UsageError

# TensorRT's own ``nptype`` of version 8.5 fails with numpy 1.24 and newer.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}

_LINEAR = "LINEAR"


@dataclass(frozen=True)
class EngineTensor:
    """One input or output of an engine, at the shape at which it runs.

    Attributes:
        name: Its name.
        is_input: Whether it goes in.
        shape: Its shape.
        dtype: Its type.
        elements: What its buffer holds, the padding of its layout counted in.
        layout: TensorRT's name of its layout; ``LINEAR`` is how numpy has it.
    """

    name: str
    is_input: bool
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    elements: int
    layout: str

    @property
    def size_bytes(self) -> int:
        """Bytes of its buffer."""
        return self.elements * self.dtype.itemsize

    @property
    def linear(self) -> bool:
        """Whether its buffer is laid out like a numpy array."""
        return self.layout == _LINEAR


def engine_tensors(
    api: TensorRTApi, engine: Any, context: Any, batch: int | None
) -> tuple[EngineTensor, ...]:
    """Returns inputs and outputs in the engine's order, after giving the context its shapes.

    Args:
        api: The library.
        engine: The loaded engine.
        context: Its execution context.
        batch: First dimension of every input; None is the static one, or the profile's usual one.

    Raises:
        UsageError: If the engine does not take this batch.
        DeviceError: If a shape is unknown before it runs, or numpy has no such type.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = {n for n in names if engine.get_tensor_mode(n) == api.module.TensorIOMode.INPUT}
    for name in names:
        if name in inputs:
            _choose_shape(engine, context, name, batch)
    return tuple(_tensor(engine, context, name, name in inputs) for name in names)


def _choose_shape(engine: Any, context: Any, name: str, batch: int | None) -> None:
    built = tuple(engine.get_tensor_shape(name))
    if -1 not in built:
        if batch is not None and built[:1] != (batch,):
            raise UsageError(
                f"the engine takes {name!r} as {built}, not in batches of {batch}; choose its own "
                "--batch, or build it with a dynamic batch"
            )
        return
    least, usual, most = (tuple(s) for s in engine.get_tensor_profile_shape(name, 0))
    shape = usual if batch is None else (batch, *usual[1:])
    if not least[0] <= shape[0] <= most[0] or not context.set_input_shape(name, shape):
        raise UsageError(
            f"the engine takes {name!r} from {least} to {most}, not {shape}; choose another "
            "--batch, or build it for a larger one"
        )


def _tensor(engine: Any, context: Any, name: str, is_input: bool) -> EngineTensor:
    shape = tuple(context.get_tensor_shape(name))
    if -1 in shape:
        raise DeviceError(
            f"the shape {shape} of the engine's {name!r} depends on the data, which is not "
            "supported; export a network whose shapes are known beforehand"
        )
    kind = engine.get_tensor_dtype(name).name
    if kind not in _DTYPES:
        raise DeviceError(
            f"the engine's {name!r} is of type {kind}, which numpy does not have; export the "
            "network with float32 inputs and outputs"
        )
    padded = list(shape)
    vectorised = engine.get_tensor_vectorized_dim(name)
    if vectorised >= 0:  # HWC8 for example pads the channels to a multiple of eight
        group = engine.get_tensor_components_per_element(name)
        padded[vectorised] = -(-padded[vectorised] // group) * group
    layout = engine.get_tensor_format(name).name
    return EngineTensor(name, is_input, shape, np.dtype(_DTYPES[kind]), prod(padded), layout)
