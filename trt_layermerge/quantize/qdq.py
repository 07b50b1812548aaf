"""A float32 model and plain magnitudes -> the same network with explicit Q/DQ pairs.

Each quantised ``Conv`` and ``Gemm`` gets a Q/DQ pair on its activation (one scale) and on its
weight (one scale for each output channel); biases stay float. Of a residual ``Add``, the shortcut
gets a pair; a convolution that feeds only this ``Add`` does not, so that TensorRT can fuse
convolution, addition and activation into one kernel whose output is int8 (NVIDIA's advice on Q/DQ
placement). Nodes share the pair of an activation; nodes kept in float read the float value.
Everything is symmetric: ``q = clip(round(x / s), -128, 127)``, ``s = magnitude / 127``.

Scales are rounded to float16 at once, so typing the rest in float16 later changes none of them.

Why not ONNX Runtime's own quantiser: it puts one pair in front of all readers of a tensor, those
kept in float included, and quantises both inputs of an addition. The pairs written here are as its
options ``QInt8``, symmetric, per channel, ``QuantizeBias=False`` and ``AddQDQPairToWeight=True``
make them, which TensorRT accepts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from trt_layermerge.errors import CorruptInputError, UnsupportedModelError, UsageError
from trt_layermerge.export.graph import checked, first_line, fresh_names, set_nodes
from trt_layermerge.quantize.layers import Layer, find_layers, parse

Ranges: TypeAlias = dict[str, float]
"""Largest magnitude that a scale covers, by the name of the activation."""

OPSET = 19
"""The first whose Q/DQ operators take float16 scales."""

IR_VERSION = 9
LEVELS = 127
HALF_MAX = float(np.finfo(np.float16).max)
SMALLEST_NORMAL, SMALLEST_SCALE = 2.0**-14, 2.0**-24
"""Where float16 begins to lose bits, and its smallest number, the step below there."""

NAMES_SHOWN = 5


def quantizable(model: bytes) -> tuple[str, ...]:
    """Returns the names of the nodes that can be quantised, in the order of the graph.

    Raises:
        CorruptInputError: If the bytes are no ONNX model.
        UnsupportedModelError: If it is quantised already.
    """
    return tuple(layer.name for layer in find_layers(parse(model).graph))


def activations(model: bytes) -> tuple[str, ...]:
    """Returns the activations that get a scale when every layer is quantised, in order."""
    graph = parse(model).graph
    nodes = {node.output[0]: node for node in graph.node}
    names = (
        nodes[layer.output].input[position]
        for layer in find_layers(graph)
        for position in layer.activations
    )
    return tuple(dict.fromkeys(names))


def quantize_model(
    model: bytes, ranges: Mapping[str, float], keep_float: Collection[str] = ()
) -> bytes:
    """Returns the model with Q/DQ pairs: opset 19, the fallback float32, always the same bytes.

    Args:
        model: A float32 ONNX model.
        ranges: Largest magnitude of each activation; what is zero gets scale 1.
        keep_float: Names of nodes that stay as they are.

    Raises:
        UsageError: If ``keep_float`` names a node that is not quantisable.
        CorruptInputError: If a range is missing, negative or not finite.
        UnsupportedModelError: If the model cannot be written at opset 19, or the checker of ONNX
            refuses the result.
    """
    proto = at_opset(parse(model))
    layers = find_layers(proto.graph)
    check_names(keep_float, [layer.name for layer in layers])
    write_pairs(proto, [layer for layer in layers if layer.name not in keep_float], ranges)
    return checked(proto, "the quantised network is not valid ONNX", "; choose --precision fp16")


def write_pairs(proto: ModelProto, chosen: Iterable[Layer], ranges: Mapping[str, float]) -> None:
    """Quantises the chosen layers of a model in place. Raises ``CorruptInputError``.

    Args:
        proto: A float32 model at opset 19.
        chosen: The layers.
        ranges: Largest magnitude of each activation.
    """
    pairs = PairWriter(proto.graph, ranges)
    by_output = {layer.output: layer for layer in chosen}
    nodes: list[NodeProto] = []
    for node in proto.graph.node:
        layer = by_output.get(node.output[0])
        if layer is not None:
            node.input[:] = pairs.inputs(node, layer)
            nodes += pairs.take_nodes()
        nodes.append(node)
    pairs.finish(nodes)


class PairWriter:
    """Makes the Q/DQ pairs of one graph: one for each activation or weight, made when asked for.

    Attributes:
        fresh: Makes a wanted name of a value one that neither the graph nor a pair has.
    """

    def __init__(self, graph: GraphProto, ranges: Mapping[str, float]) -> None:
        self._graph = graph
        self._ranges = ranges
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._made: dict[tuple[str, int | None], str] = {}
        self._nodes: list[NodeProto] = []
        self.fresh = fresh_names(graph)
        self._constants: list[TensorProto] = []

    def inputs(self, node: NodeProto, layer: Layer) -> list[str]:
        """Returns the inputs of a node with those to quantise replaced by the ends of pairs."""
        inputs = list(node.input)
        for position in layer.activations:
            name = inputs[position]
            scale = np.array(scale_of(self._magnitude(name)), np.float32)
            inputs[position] = self._pair(name, scale, None)
        if layer.weight_axis is not None:
            weight = numpy_helper.to_array(self._weights[inputs[1]])
            scales = weight_scales(weight, layer.weight_axis)
            inputs[1] = self._pair(inputs[1], scales, layer.weight_axis)
        return inputs

    def take_nodes(self) -> list[NodeProto]:
        """Returns the nodes made since this was last called."""
        nodes, self._nodes = self._nodes, []
        return nodes

    def finish(self, nodes: Iterable[NodeProto]) -> None:
        """Gives the graph its new nodes, and the constants of all pairs."""
        set_nodes(self._graph, nodes)
        self._graph.initializer.extend(self._constants)

    def _magnitude(self, name: str) -> float:
        if name not in self._ranges:
            raise CorruptInputError(
                f"the calibration has no range of {name!r}; it belongs to another network: "
                "calibrate this one"
            )
        value = self._ranges[name]
        if not (np.isfinite(value) and value >= 0):
            raise CorruptInputError(
                f"the calibrated range of {name!r} is {value}; it must be finite and not negative: "
                "calibrate again"
            )
        return value

    def _pair(self, name: str, scale: NDArray[np.float32], axis: int | None) -> str:
        made = self._made.get((name, axis))
        if made is not None:
            return made
        zero = np.zeros(scale.shape, np.int8)
        fresh = self.fresh
        extra = [fresh(f"{name}_scale"), fresh(f"{name}_zero_point")]
        self._constants.append(numpy_helper.from_array(scale, extra[0]))
        self._constants.append(numpy_helper.from_array(zero, extra[1]))
        middle, end = fresh(f"{name}_quantized"), fresh(f"{name}_dequantized")
        for op, source, target in (
            ("QuantizeLinear", name, middle),
            ("DequantizeLinear", middle, end),
        ):
            node = helper.make_node(op, [source, *extra], [target], f"{name}_{op}")
            if axis is not None:
                node.attribute.append(helper.make_attribute("axis", axis))
            self._nodes.append(node)
        self._made[name, axis] = end
        return end


def scale_of(magnitude: float) -> float:
    """Returns ``magnitude / 127`` rounded to float16; 1 for zero.

    Below float16's normal range, where steps are coarse, it is rounded up: down would clip up to a
    third of what was seen.
    What is too large for float16 is not rounded; typing the model in float16 refuses it.
    """
    exact = magnitude / LEVELS
    if exact == 0:
        return 1.0
    if exact > HALF_MAX:
        return exact
    if exact < SMALLEST_NORMAL:
        return math.ceil(exact / SMALLEST_SCALE) * SMALLEST_SCALE
    return float(np.float16(exact))


def weight_scales(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Returns the scale of each output channel, ``(C_out,)``: ``max|w| / 127`` as ``scale_of``."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return np.array([scale_of(float(m)) for m in np.abs(weight).max(axis=others)], np.float32)


def at_opset(proto: ModelProto) -> ModelProto:
    """Returns the model at opset 19. Raises ``UnsupportedModelError`` where ONNX cannot do that."""
    try:
        converted = onnx.version_converter.convert_version(proto, OPSET)
    except Exception as error:  # RuntimeError and others, from C++
        raise UnsupportedModelError(
            f"the network cannot be written at ONNX opset {OPSET}, which int8 needs: "
            f"{first_line(error)}; choose --precision fp16"
        ) from error
    del converted.metadata_props[:]
    converted.metadata_props.extend(proto.metadata_props)
    converted.ir_version = max(converted.ir_version, IR_VERSION)
    return converted


def check_names(names: Collection[str], known: Collection[str]) -> None:
    """Raises ``UsageError`` if a name is not among those of the quantisable nodes."""
    strangers = sorted(set(names) - set(known))
    if strangers:
        near = [match for name in strangers for match in get_close_matches(name, known)]
        some = ", ".join(near or list(known)[:NAMES_SHOWN])
        raise UsageError(
            f"keep_float names {strangers[:NAMES_SHOWN]}, and none of the {len(known)} nodes that "
            f"can be quantised is called so; {'near it is' if near else 'they are like'} {some} "
            "(all stand under layers in calibration.json of a run at int8)"
        )
