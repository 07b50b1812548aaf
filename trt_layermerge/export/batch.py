"""The batch of an ONNX model: fixed, or free for the optimisation profile of an engine to bound.

To change it, the first dimension of every input is replaced, and the shapes of everything else are
inferred again. What an exporter froze on the way, the first entry of a constant ``Reshape`` target,
becomes ONNX's 0, which copies the dimension of the input. Needs neither torch nor a runtime.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from trt_layermerge.errors import UnsupportedModelError, UsageError
from trt_layermerge.export.graph import INVALID, first_line, fresh_names, parse_model

Shape: TypeAlias = tuple[int, ...]


def dynamic_batch(model: bytes) -> bool:
    """Returns whether the first dimension of some input is free.

    Raises:
        CorruptInputError: If the bytes are no ONNX model.
    """
    return any(not _first(value).HasField("dim_value") for value in _inputs(parse_model(model)))


def with_batch(model: bytes, batch: int) -> bytes:
    """Returns the model with a first dimension of ``batch``, whatever it was.

    Raises:
        UsageError: If the batch is below 1.
        CorruptInputError: If the bytes are no ONNX model.
        UnsupportedModelError: If the network froze another batch where it cannot be freed.
    """
    if batch < 1:
        raise UsageError(f"a batch of {batch} is no batch; give 1 or more (--batch)")
    parsed = parse_model(model)
    if all(_first(value).dim_value == batch for value in _inputs(parsed)):
        return model  # whatever its code does with the batch, it does with this one
    _thaw(parsed)
    for value in _inputs(parsed):
        _first(value).dim_value = batch
    return _inferred(parsed, batch)


def batch_shapes(
    model: bytes, smallest: int, usual: int, largest: int
) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Returns the shapes at three batches of every input whose batch is free, by name.

    Args:
        model: An ONNX model.
        smallest: Fewest images per run, at least 1.
        usual: What an engine is tuned for.
        largest: Most images per run.

    Raises:
        UsageError: If the batches are not in this order.
        CorruptInputError: If the bytes are no ONNX model.
        UnsupportedModelError: If another dimension than the batch is free.
    """
    if not 1 <= smallest <= usual <= largest:
        raise UsageError(
            f"batches of {smallest}, {usual} and {largest} are not in order; give a "
            "build.max_batch that is not below the measured batch"
        )
    found = {}
    for value in _inputs(parse_model(model)):
        if _first(value).HasField("dim_value"):
            continue
        rest = value.type.tensor_type.shape.dim[1:]
        if not all(dimension.HasField("dim_value") for dimension in rest):
            raise UnsupportedModelError(
                f"the input {value.name!r} has free dimensions besides its batch; export the "
                "network for one size of image"
            )
        tail = tuple(int(dimension.dim_value) for dimension in rest)
        found[value.name] = ((smallest, *tail), (usual, *tail), (largest, *tail))
    return found


def _inputs(model: ModelProto) -> list[ValueInfoProto]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _first(value: ValueInfoProto) -> onnx.TensorShapeProto.Dimension:
    dimensions = value.type.tensor_type.shape.dim
    if not dimensions:
        raise UnsupportedModelError(
            f"the input {value.name!r} has no dimension that could be a batch; give a network "
            "whose first dimension is the batch"
        )
    first: onnx.TensorShapeProto.Dimension = dimensions[0]
    return first


def _thaw(model: ModelProto) -> None:
    """Replaces the frozen batch at the start of ``Reshape`` targets by 0, in place."""
    frozen = {_first(value).dim_value for value in _inputs(model)} - {0}
    if not frozen:
        return
    fresh = fresh_names(model.graph)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        target = constants.get(node.input[1]) if _copies_on_zero(node) else None
        if target is None:
            continue
        shape = numpy_helper.to_array(target)
        if len(shape) > 1 and shape[0] in frozen:
            name = fresh(f"{node.output[0]}_shape")  # the constant may serve other nodes as well
            thawed = np.concatenate([np.zeros(1, np.int64), shape[1:]])
            model.graph.initializer.append(numpy_helper.from_array(thawed, name))
            node.input[1] = name
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _copies_on_zero(node: NodeProto) -> bool:
    return node.op_type == "Reshape" and not any(
        a.name == "allowzero" and a.i for a in node.attribute
    )


def _inferred(model: ModelProto, wanted: int) -> bytes:
    """Returns the model with all shapes inferred again, where every output has the batch.

    An output whose batch inference cannot tell is no frozen one: it is given the batch.
    """
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        found = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        onnx.checker.check_model(found, full_check=True)
    except INVALID as error:
        raise _frozen(wanted, first_line(error)) from error
    for value in found.graph.output:
        dimensions = value.type.tensor_type.shape.dim
        if dimensions and not dimensions[0].HasField("dim_value"):
            dimensions[0].dim_value = wanted
        batch = dimensions[0].dim_value if dimensions else None
        if batch != wanted or kinds[value.name] not in (
            TensorProto.UNDEFINED,
            value.type.tensor_type.elem_type,
        ):
            raise _frozen(wanted, f"the output {value.name!r} would have a batch of {batch}")
    data: bytes = found.SerializeToString(deterministic=True)
    return data


def _frozen(wanted: int, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the network cannot take a batch of {wanted}, because it was exported for another one and "
        f"keeps that inside: {why}. Export it from torch for this batch (measure.batch), or with a "
        "dynamic one (build.max_batch)"
    )
