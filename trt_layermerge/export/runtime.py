"""ONNX Runtime on the CPU, for what a network computes, not for how fast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from trt_layermerge.core.inputs import Several, chunks, joined, mapped, parts_of
from trt_layermerge.errors import (
    CorruptInputError,
    DeviceError,
    MissingDependencyError,
    UsageError,
)
from trt_layermerge.export.graph import fresh_names

Images: TypeAlias = NDArray[np.float32] | Several
"""Network inputs ``(N, C, H, W)``, or several of them."""

LARGEST_BATCH = 32
_ERRORS_ONLY = 3


def open_model(model: bytes) -> Callable[[Images], list[NDArray[np.float32]]]:
    """Returns a function from one batch of images, or of several inputs, to a model's outputs.

    Q/DQ pairs are computed as they are written, in float: integer kernels of a CPU may saturate
    where it lacks the instructions, which says nothing about a GPU.

    Raises:
        MissingDependencyError: If ONNX Runtime is not installed.
        DeviceError: If it cannot load the model.
    """
    ort = runtime()
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library has no common class for its errors
        raise DeviceError(f"ONNX Runtime cannot load the model: {error}") from error
    names = [value.name for value in session.get_inputs()]

    def run(images: Images) -> list[NDArray[np.float32]]:
        given = parts_of(images)
        try:
            outputs: list[NDArray[np.float32]] = session.run(
                None, dict(zip(names, given, strict=True))
            )
        except Exception as error:  # no common class here either
            shapes = ", ".join(str(part.shape) for part in given)
            raise DeviceError(
                f"ONNX Runtime cannot run the model on images of shape {shapes}: {error}"
            ) from error
        return outputs

    return run


def runtime() -> Any:
    """Returns the module ``onnxruntime``. Raises ``MissingDependencyError``."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "onnxruntime", "running an ONNX network", "onnxruntime"
        ) from error
    return onnxruntime


def outputs_of(model: bytes, images: Images) -> dict[str, NDArray[np.float32]]:
    """Returns all outputs by name for any number of images, whatever the batch is."""
    run = open_model(model)
    parts = [run(batch) for batch in rebatch([images], batch_of(model))]
    names = (value.name for value in onnx.load_from_string(model).graph.output)
    return {
        name: np.concatenate(found)[: len(images)]
        for name, found in zip(names, zip(*parts, strict=True), strict=True)
    }


def logits(model: bytes, images: Images) -> NDArray[np.float32]:
    """Returns the first output ``(N, classes)`` for any number of images."""
    return next(iter(outputs_of(model, images).values()))


def with_outputs(model: bytes, values: Iterable[str]) -> bytes:
    """Returns a model whose outputs are other float32 values of it, in this order."""
    proto = onnx.load_from_string(model)
    del proto.graph.output[:]
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in values
    )
    data: bytes = proto.SerializeToString()
    return data


def magnitudes(model: bytes, batches: Iterable[Images], values: Sequence[str]) -> dict[str, float]:
    """Returns the largest magnitude of some values over all images; not a number counts as inf.

    The maxima are taken inside the graph: memory holds one number for each value.

    Args:
        model: A float32 ONNX model.
        batches: Images ``(N, C, H, W)``, batch by batch.
        values: Names of float32 values.

    Raises:
        MissingDependencyError: If ONNX Runtime is not installed.
        DeviceError: If it cannot run the model.
        CorruptInputError: If an image is not finite.
        UsageError: If there is no image.
    """
    proto = onnx.load_from_string(model)
    fresh = fresh_names(proto.graph)
    largest = []
    for value in values:
        size, most = fresh(f"{value}_size"), fresh(f"{value}_most")
        proto.graph.node.append(onnx.helper.make_node("Abs", [value], [size]))
        proto.graph.node.append(onnx.helper.make_node("ReduceMax", [size], [most], keepdims=0))
        largest.append(most)
    run = open_model(with_outputs(proto.SerializeToString(), largest))
    found = np.zeros(len(largest))
    for batch in rebatch(batches, batch_of(model)):
        found = np.maximum(found, np.array(run(batch), np.float64))
    found[np.isnan(found)] = np.inf
    return dict(zip(values, found.tolist(), strict=True))


def batch_of(model: bytes) -> int | None:
    """Returns the batch that a model insists on, or None where it takes any.

    Raises:
        CorruptInputError: If the bytes are no ONNX model with an input that has a batch.
    """
    try:
        first = onnx.load_from_string(model).graph.input[0].type.tensor_type.shape.dim[0]
    except Exception as error:  # protobuf's error class differs between its versions
        raise CorruptInputError(
            f"these bytes are no ONNX model of images ({error}); export it again"
        ) from error
    return first.dim_value if first.HasField("dim_value") else None


def rebatch(batches: Iterable[Images], size: int | None) -> Iterator[Images]:
    """Yields the same images in batches of ``size``; the last is filled by repeating an image.

    Without a size, batches stay as they are, cut into pieces of at most 32.

    Raises:
        CorruptInputError: If an image is not finite.
        UsageError: If there is none.
    """
    rest: list[Images] = []
    count = 0
    for batch in batches:
        if not all(np.isfinite(part).all() for part in parts_of(batch)):
            raise CorruptInputError("an image is not finite; check the data and the preprocessing")
        count += len(batch)
        pieces = _pieces([*rest, batch], size or LARGEST_BATCH)
        rest = [pieces.pop()] if size and len(pieces[-1]) < size else []
        yield from pieces
    if not count:
        raise UsageError("no images were given to calibrate with; give at least one")
    if size and rest:
        missing = size - len(rest[0])
        yield mapped(
            lambda part: np.concatenate([part, part[-1:].repeat(missing, axis=0)]), rest[0]
        )


def _pieces(parts: Sequence[Images], size: int) -> list[Images]:
    return list(chunks(joined(parts, np.concatenate), size))
