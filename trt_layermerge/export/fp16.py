"""A float32 ONNX model -> the same network typed in float16.

TensorRT 11 and TensorRT-RTX take every precision from the types in the graph, so half precision
is a property of the model, not a flag of the builder. There is one float32 master; this is the
only step between it and an fp16 engine, and it needs no torch.

Everything of type float becomes float16: initializers, attributes, casts, declared shapes, inputs
and outputs. Constants that ONNX defines as float32 whatever the data are (``scales`` of ``Resize``)
stay. Strict type inference then proves that no float32 is left beside a float16.

Nodes that read or write a value that half precision cannot hold stay float32, with a ``Cast`` at
every border. Which values these are was found on images (``beyond_half``), and stands in the
metadata of the master.

A Q/DQ model stays int8 where it is: its scales become float16, which takes opset 19, and its zero
points and int8 constants are untouched. What was left in float becomes half.

Constants that would round to zero become the smallest float16 with their sign (an ``eps`` that is
divided by must not vanish), but for the weights of layers, which are only summed up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from trt_layermerge.core.device import Precision
from trt_layermerge.errors import UnsupportedModelError, UsageError
from trt_layermerge.export.graph import checked, fresh_names, parse_model, rename, set_nodes
from trt_layermerge.export.runtime import Images, magnitudes

FP16_MAX = float(np.finfo(np.float16).max)
TINIEST = 2.0**-24
LARGEST, SMALLEST = FP16_MAX / 2, 2.0**-14
"""Where values are trusted to half precision: images that were not seen may reach further."""

# Inputs that are float32 in every model: operator -> positions.
_ALWAYS_FP32 = {"Resize": (1, 2), "Upsample": (1,)}
# Inputs by which the data are divided: none may round to zero.
_SCALES = {"QuantizeLinear": (1,), "DequantizeLinear": (1,)}
# Inputs whose largest float32 stands for "no bound": the largest float16 says the same.
_OPEN_ENDED = {"Clip": (1, 2)}
# Attributes that name the type of what comes out.
_TYPE_ATTRIBUTES = {"Cast": "to", "RandomNormal": "dtype", "RandomUniform": "dtype"}
# Weights of layers: multiplied and summed up, so what rounds to zero there does no harm.
_SUMMED = dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), (0, 1, 2))
_PAIRS = ("QuantizeLinear", "DequantizeLinear")

BEYOND_HALF = "trt_layermerge.beyond_half"
"""Key of a model's metadata: the values that half precision cannot hold, one name a line."""


def to_precision(
    model_bytes: bytes, precision: Precision, keep_io: bool = False, *, timed: bool = False
) -> bytes:
    """Returns the model typed for a precision; ``fp32`` gives the bytes back unchanged.

    Args:
        model_bytes: A float32 ONNX model, or one with Q/DQ pairs whose fallback is float32.
        precision: ``fp32`` or ``fp16``.
        keep_io: Whether inputs and outputs stay float32, at the price of a ``Cast`` each.
        timed: Whether only its speed counts: constants that do not fit are cut off at what does.

    Raises:
        UsageError: If ``int8`` is asked for: it needs calibration, not a conversion of types.
        CorruptInputError: If the bytes are no ONNX model.
        UnsupportedModelError: If a constant does not fit into float16 (65504) or is not finite, a
            scale or a whole weight rounds to zero, or an operator cannot run in float16.
    """
    if precision == "int8":
        raise UsageError(
            "types alone make no int8 network: its scales come from calibration; type: "
            "trt-layermerge calibrate --run NAME, or choose --precision fp16 or fp32"
        )
    if precision == "fp32":
        return model_bytes
    model = _parse(model_bytes)
    graph = model.graph
    floats = _floats(model)
    kept = kept_in_float(model)
    single = [node for node in graph.node if _name(node) in kept]
    made = {name for node in single for name in node.output}
    half = [node for node in graph.node if node.output[0] not in made]
    pinned = _names_at(graph.node, _ALWAYS_FP32) | _kept_constants(graph, single, half)
    _halve_all(graph, half, pinned, timed)
    for node in half:
        _retype(node)
    _add_casts(graph, made, floats - pinned, keep_io)
    _retype_values(graph, pinned | made, keep_io)
    refusal = "the network cannot be typed in float16"
    return checked(model, refusal, "; choose --precision fp32")


def kept_in_float(model: ModelProto) -> tuple[str, ...]:
    """Returns the names of the nodes at values that half precision cannot hold, in order.

    The metadata of the model name these values; a Q/DQ pair stands for the value that it rounds.
    """
    told = {entry.key: entry.value for entry in model.metadata_props}
    beyond = set(told.get(BEYOND_HALF, "").split())
    names = []
    for node in model.graph.node:
        if node.op_type in _PAIRS and node.input[0] in beyond:
            beyond.update(node.output)
        if beyond.intersection((*node.input, *node.output)):
            names.append(_name(node))
    return tuple(names)


def beyond_half(model: bytes, batches: Iterable[Images]) -> bytes:
    """Returns the float32 model with the names of the values that half precision cannot hold.

    Those that come nearer than a factor of two to 65504 on the images (other images may reach
    further), those whose largest magnitude is below 2^-14, where float16 loses its precision, and
    the results of nodes with a constant of either kind. Values that are always zero are neither.

    Args:
        model: A float32 ONNX model.
        batches: Images ``(N, C, H, W)``, batch by batch.

    Raises:
        The errors of ``magnitudes``.
    """
    proto = parse_model(model)
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    floats = _floats(proto)
    values = [n for node in proto.graph.node for n in node.output if n in floats]
    largest = magnitudes(model, batches, values)
    beyond = {name for name, most in largest.items() if most and not SMALLEST <= most <= LARGEST}
    for node in proto.graph.node:
        places = _SUMMED.get(node.op_type, ())[1:2]
        for place, name in enumerate(node.input):
            if name in constants and name in floats and node.op_type != "Clip":
                most = float(np.abs(numpy_helper.to_array(constants[name])).max(initial=0))
                if most > FP16_MAX or (place in places and 0 < most < SMALLEST):
                    beyond.add(node.output[0])
    if not beyond:
        return model
    names = "\n".join(name for name in values if name in beyond)
    proto.metadata_props.add(key=BEYOND_HALF, value=names)
    return checked(proto)


def rounded(model: bytes) -> bytes:
    """Returns a float32 model that computes what a model typed in float16 does, on any processor.

    ONNX Runtime's CPU provider has no half precision: it computes in float, and leaves the casts
    between two operations out, so nothing overflows. Here the results of every operation in half
    precision are rounded to float16 by casts that are part of the graph. Sums inside an operation
    are those of float32, as tensor cores add them up.

    Args:
        model: What ``to_precision`` gives at fp16.

    Raises:
        CorruptInputError: If the bytes are no ONNX model.
    """
    proto = parse_model(model)
    graph = proto.graph
    halves = _floats(proto, TensorProto.FLOAT16)
    if not halves:
        return model
    fresh = fresh_names(graph)
    nodes = []
    for value in graph.input:  # stays half
        if value.name in halves:
            inner = fresh(f"{value.name}_single")
            nodes.append(_cast(value.name, inner, TensorProto.FLOAT))
            rename(graph, value.name, inner)
    for _, tensor in _constants(graph):
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in graph.node:
        name = _TYPE_ATTRIBUTES.get(node.op_type)
        for attribute in node.attribute:
            if attribute.name == name and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
        nodes.append(node)
        for place, value in enumerate(node.output):
            if value in halves:
                exact, half = fresh(f"{value}_exact"), fresh(f"{value}_half")
                node.output[place] = exact
                nodes.append(_cast(exact, half, TensorProto.FLOAT16))
                nodes.append(_cast(half, value, TensorProto.FLOAT, "uncast"))
    for value in graph.output:
        if value.name in halves:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    set_nodes(graph, nodes)
    return checked(proto)


def _name(node: NodeProto) -> str:
    return str(node.name or node.output[0])


def _floats(model: ModelProto, kind: int = TensorProto.FLOAT) -> frozenset[str]:
    """Returns the names of all values of a type, constants among them."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return frozenset(
        [v.name for v in values if v.type.tensor_type.elem_type == kind]
        + [t.name for t in graph.initializer if t.data_type == kind]
    )


def _parse(data: bytes) -> ModelProto:
    model = parse_model(data)
    for node in model.graph.node:
        if any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute):
            raise UnsupportedModelError(
                f"{node.op_type} {node.name!r} holds a graph of its own, which is not converted "
                "to float16; choose --precision fp32"
            )
    return model


def _names_at(nodes: Iterable[NodeProto], places: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    """Returns the values that stand at the given inputs of the given operators."""
    return frozenset(
        node.input[position]
        for node in nodes
        for position in places.get(node.op_type, ())
        if position < len(node.input)
    )


def _constants(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Yields every constant with the name of its value, wherever it is kept."""
    yield from ((t.name, t) for t in graph.initializer)
    for node in graph.node:
        yield from ((node.output[0], a.t) for a in node.attribute if a.type == a.TENSOR)


def _kept_constants(
    graph: GraphProto, single: Iterable[NodeProto], half: Iterable[NodeProto]
) -> frozenset[str]:
    """Returns the constants of the nodes that stay float32, each a copy where it is shared."""
    fresh = fresh_names(graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shared = {name for node in half for name in node.input}
    kept: dict[str, str] = {}
    for node in single:
        for place, name in enumerate(node.input):
            if name not in constants or constants[name].data_type != TensorProto.FLOAT:
                continue
            if name not in kept:
                kept[name] = fresh(f"{name}_fp32") if name in shared else name
                if name in shared:
                    values = numpy_helper.to_array(constants[name])
                    graph.initializer.append(numpy_helper.from_array(values, kept[name]))
            node.input[place] = kept[name]
    return frozenset(kept.values())


def _halve_all(
    graph: GraphProto, half: Sequence[NodeProto], pinned: Collection[str], timed: bool
) -> None:
    """Rounds all constants but the pinned ones to float16, in place."""
    bounds, scales = _names_at(half, _OPEN_ENDED), _names_at(half, _SCALES)
    weights = _names_at(half, {op: places[1:2] for op, places in _SUMMED.items()})
    summed = _names_at(half, _SUMMED) | scales
    for name, tensor in _constants(graph):
        if name in pinned or tensor.data_type != TensorProto.FLOAT:
            continue
        some = numpy_helper.to_array(tensor).any()
        _halve(name, tensor, saturate=timed or name in bounds, lift=timed or name not in summed)
        halves = numpy_helper.to_array(tensor)
        if name in scales and not halves.all():
            raise UnsupportedModelError(
                f"the scale {name!r} is zero in float16, which ends at 6e-08; keep its layer in "
                "float (keep_float of the calibration preset), or choose --precision fp32"
            )
        if name in weights and some and not halves.any():
            raise UnsupportedModelError(
                f"all of the weight {name!r} is zero in float16, which ends at 6e-08; choose "
                "--precision fp32"
            )


def _halve(name: str, tensor: TensorProto, *, saturate: bool, lift: bool) -> None:
    """Rounds a float32 tensor to float16 in place; ``lift`` keeps what is not zero from it."""
    values = numpy_helper.to_array(tensor)
    if not (saturate or (np.abs(values) <= FP16_MAX).all()):  # refuses nan too
        raise UnsupportedModelError(
            f"the constant {name!r} reaches {float(np.abs(values).max()):g}, float16 ends at "
            f"{FP16_MAX:g}; choose --precision fp32"
        )
    halves = np.clip(values, -FP16_MAX, FP16_MAX).astype(np.float16)
    if lift:
        halves = np.where((halves == 0) & (values != 0), np.copysign(TINIEST, halves), halves)
    tensor.CopyFrom(numpy_helper.from_array(halves.astype(np.float16), tensor.name))


def _retype(node: NodeProto) -> None:
    name = _TYPE_ATTRIBUTES.get(node.op_type)
    for attribute in node.attribute:
        if attribute.name == name and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16


def _retype_values(graph: GraphProto, pinned: Collection[str], keep_io: bool) -> None:
    ends = [*graph.input, *graph.output]
    values = [value for value in graph.value_info if value.name not in pinned]
    for value in values if keep_io else [*values, *ends]:
        if _is_float(value):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16


def _add_casts(
    graph: GraphProto, made: Collection[str], floats: Collection[str], keep_io: bool
) -> None:
    """Puts a ``Cast`` wherever a float value is made in one precision and read in the other.

    Args:
        graph: The graph, its constants typed.
        made: What the nodes make that stay float32.
        floats: The values that are float32 in the master.
        keep_io: Whether inputs and outputs of the graph are float32.
    """
    fresh = fresh_names(graph)
    constants = {tensor.name for tensor in graph.initializer}
    after: list[NodeProto] = []
    for end in graph.output:
        if _is_float(end) and (end.name in made) != keep_io:
            inner = fresh(f"{end.name}_fp{32 if end.name in made else 16}")
            rename(graph, end.name, inner)
            after.append(
                _cast(inner, end.name, TensorProto.FLOAT if keep_io else TensorProto.FLOAT16)
            )
            made = {*made, inner} if end.name in made else made
            floats = {*floats, inner}
    single = {*made, *(value.name for value in graph.input if keep_io)}
    casts: dict[str, str] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        wants = node.output[0] in made
        for place, name in enumerate(node.input):
            if name not in floats or name in constants or (name in single) == wants:
                continue
            if name not in casts:
                casts[name] = fresh(f"{name}_fp{32 if wants else 16}")
                kind = TensorProto.FLOAT if wants else TensorProto.FLOAT16
                nodes.append(_cast(name, casts[name], kind))
            node.input[place] = casts[name]
        nodes.append(node)
    set_nodes(graph, [*nodes, *after])


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type == TensorProto.FLOAT


def _cast(source: str, target: str, kind: int, word: str = "cast") -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{word}_{target}", to=kind)
