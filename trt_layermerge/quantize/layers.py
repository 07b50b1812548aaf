"""What of an ONNX graph can be quantised, and at which inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.export.graph import parse_model


@dataclass(frozen=True, slots=True)
class Layer:
    """A node that can be quantised.

    Attributes:
        name: Its name, or that of its output where it has none of its own.
        op: ``Conv``, ``Gemm`` or ``Add``.
        output: Name of its output, unique in the graph.
        activations: Positions of the inputs that get one scale.
        weight_axis: Axis of the output channels in input 1, or None for an ``Add``.
    """

    name: str
    op: str
    output: str
    activations: tuple[int, ...]
    weight_axis: int | None


def parse(model: bytes) -> ModelProto:
    """Returns a float model with the shapes of all values inferred.

    Raises:
        CorruptInputError: If the bytes are no ONNX model.
        UnsupportedModelError: If it is quantised already.
    """
    proto = onnx.shape_inference.infer_shapes(parse_model(model))
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in proto.graph.node):
        raise UnsupportedModelError(
            "this network is quantised already; give the float32 model that it was made from"
        )
    return proto


def find_layers(graph: GraphProto) -> tuple[Layer, ...]:
    """Returns what can be quantised, in order: float convolutions, ``Gemm`` and residual ``Add``.

    Weights must be constants. An ``Add`` is residual if both inputs are activations of one shape.
    """
    return tuple(_layers(graph, _float_shapes(graph)))


def _layers(graph: GraphProto, shapes: Mapping[str, str]) -> Iterator[Layer]:
    constants = {tensor.name for tensor in graph.initializer}
    named = Counter(node.name for node in graph.node)
    readers = Counter(name for node in graph.node for name in node.input)
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "Add") or node.input[0] not in shapes:
            continue
        if node.op_type == "Add":
            left, right = (None if name in constants else shapes.get(name) for name in node.input)
            positions = _shortcuts(node, makers, readers) if left and left == right else ()
        else:
            fixed = node.input[1] in constants and node.input[0] not in constants
            positions = (0,) if fixed and not _flag(node, "transA") else ()
        if positions:
            name = node.name if node.name and named[node.name] == 1 else node.output[0]
            yield Layer(name, node.op_type, node.output[0], positions, _weight_axis(node))


def _shortcuts(
    add: NodeProto, makers: Mapping[str, NodeProto], readers: Mapping[str, int]
) -> tuple[int, ...]:
    """Returns the inputs to quantise: all but one that comes straight from a convolution."""
    straight = [
        position
        for position, name in enumerate(add.input)
        if name in makers and makers[name].op_type == "Conv" and readers[name] == 1
    ]
    return tuple(position for position in (0, 1) if position not in straight[:1])


def _weight_axis(node: NodeProto) -> int | None:
    if node.op_type == "Add":
        return None
    return 1 if node.op_type == "Gemm" and not _flag(node, "transB") else 0


def _flag(node: NodeProto, name: str) -> bool:
    return any(attribute.name == name and attribute.i for attribute in node.attribute)


def _float_shapes(graph: GraphProto) -> dict[str, str]:
    """Returns the shape of every float32 value whose shape ONNX can tell, in words."""
    return {
        value.name: " ".join(str(d.dim_value or d.dim_param) for d in tensor.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if (tensor := value.type.tensor_type).elem_type == TensorProto.FLOAT
    }
