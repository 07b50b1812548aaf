"""A float32 ONNX model -> the same network typed in float16.

TensorRT 11 and TensorRT-RTX take every precision from the types in the graph, so half precision
is a property of the model, not a flag of the builder. There is one float32 master; this is the
only step between it and an fp16 engine, and it needs no torch.

Everything of type float becomes float16: initializers, attributes, casts, declared shapes, inputs
and outputs. Constants that ONNX defines as float32 whatever the data are (``scales`` of ``Resize``)
stay. Strict type inference then proves that no float32 is left beside a float16.

A Q/DQ model stays int8 where it is: its scales become float16, which takes opset 19, and its zero
points and int8 constants are untouched. What was left in float becomes half.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from trt_layermerge.core.device import Precision
from trt_layermerge.errors import UnsupportedModelError, UsageError
from trt_layermerge.export.graph import checked, parse_model, set_nodes

FP16_MAX = float(np.finfo(np.float16).max)

# Inputs that are float32 in every model: operator -> positions.
_ALWAYS_FP32 = {"Resize": (1, 2), "Upsample": (1,)}
# Inputs by which the data are divided: none may round to zero.
_SCALES = {"QuantizeLinear": (1,), "DequantizeLinear": (1,)}
# Inputs whose largest float32 stands for "no bound": the largest float16 says the same.
_OPEN_ENDED = {"Clip": (1, 2)}
# Attributes that name the type of what comes out.
_TYPE_ATTRIBUTES = {"Cast": "to", "RandomNormal": "dtype", "RandomUniform": "dtype"}


def to_precision(model_bytes: bytes, precision: Precision, keep_io: bool = False) -> bytes:
    """Returns the model typed for a precision; ``fp32`` gives the bytes back unchanged.

    Args:
        model_bytes: A float32 ONNX model, or one with Q/DQ pairs whose fallback is float32.
        precision: ``fp32`` or ``fp16``.
        keep_io: Whether inputs and outputs stay float32, at the price of a ``Cast`` each.

    Raises:
        UsageError: If ``int8`` is asked for: it needs calibration, not a conversion of types.
        CorruptInputError: If the bytes are no ONNX model.
        UnsupportedModelError: If a constant does not fit into float16 (65504) or is not finite, a
            scale rounds to zero, or an operator cannot run in float16.
    """
    if precision == "int8":
        raise UsageError(
            "types alone make no int8 network: its scales come from calibration; type: "
            "trt-layermerge calibrate --run NAME, or choose --precision fp16 or fp32"
        )
    if precision == "fp32":
        return model_bytes
    model = _parse(model_bytes)
    pinned = _names_at(model.graph, _ALWAYS_FP32)
    bounds = _names_at(model.graph, _OPEN_ENDED)
    scales = _names_at(model.graph, _SCALES)
    for name, tensor in _constants(model.graph):
        if name not in pinned:
            _halve(name, tensor, saturate=name in bounds)
        if name in scales and not numpy_helper.to_array(tensor).all():
            raise UnsupportedModelError(
                f"the scale {name!r} is zero in float16, which ends at 6e-08; keep its layer in "
                "float (keep_float of the calibration preset), or choose --precision fp32"
            )
    for node in model.graph.node:
        _retype(node)
    _retype_values(model.graph, pinned, keep_io)
    if keep_io:
        _add_casts(model.graph)
    refusal = "the network cannot be typed in float16"
    return checked(model, refusal, "; choose --precision fp32")


def _parse(data: bytes) -> ModelProto:
    model = parse_model(data)
    for node in model.graph.node:
        if any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute):
            raise UnsupportedModelError(
                f"{node.op_type} {node.name!r} holds a graph of its own, which is not converted "
                "to float16; choose --precision fp32"
            )
    return model


def _names_at(graph: GraphProto, places: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    """Returns the values that stand at the given inputs of the given operators."""
    return frozenset(
        node.input[position]
        for node in graph.node
        for position in places.get(node.op_type, ())
        if position < len(node.input)
    )


def _constants(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Yields every constant with the name of its value, wherever it is kept."""
    yield from ((t.name, t) for t in graph.initializer)
    for node in graph.node:
        yield from ((node.output[0], a.t) for a in node.attribute if a.type == a.TENSOR)


def _halve(name: str, tensor: TensorProto, saturate: bool) -> None:
    """Rounds a float32 tensor to float16 in place."""
    if tensor.data_type != TensorProto.FLOAT:
        return
    values = numpy_helper.to_array(tensor)
    if not (saturate or (np.abs(values) <= FP16_MAX).all()):  # refuses nan too
        raise UnsupportedModelError(
            f"the constant {name!r} reaches {float(np.abs(values).max()):g}, float16 ends at "
            f"{FP16_MAX:g}; choose --precision fp32"
        )
    halves = np.clip(values, -FP16_MAX, FP16_MAX).astype(np.float16)
    tensor.CopyFrom(numpy_helper.from_array(halves, tensor.name))


def _retype(node: NodeProto) -> None:
    name = _TYPE_ATTRIBUTES.get(node.op_type)
    for attribute in node.attribute:
        if attribute.name == name and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16


def _retype_values(graph: GraphProto, pinned: frozenset[str], keep_io: bool) -> None:
    values = list(graph.value_info)
    if not keep_io:
        values += [*graph.input, *graph.output]
    for value in values:
        kind = value.type.tensor_type
        if kind.elem_type == TensorProto.FLOAT and value.name not in pinned:
            kind.elem_type = TensorProto.FLOAT16


def _add_casts(graph: GraphProto) -> None:
    """Puts a ``Cast`` behind every float input and before every float output."""
    taken = {t.name for t in graph.initializer}
    inputs = {i.name: f"{i.name}_fp16" for i in graph.input if _is_float(i) and i.name not in taken}
    outputs = {o.name: f"{o.name}_fp16" for o in graph.output if _is_float(o)}
    for node in graph.node:
        node.input[:] = [{**inputs, **outputs}.get(name, name) for name in node.input]
        node.output[:] = [outputs.get(name, name) for name in node.output]
    before = [_cast(name, inner, TensorProto.FLOAT16) for name, inner in inputs.items()]
    after = [_cast(inner, name, TensorProto.FLOAT) for name, inner in outputs.items()]
    set_nodes(graph, [*before, *graph.node, *after])


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type == TensorProto.FLOAT


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=kind)
