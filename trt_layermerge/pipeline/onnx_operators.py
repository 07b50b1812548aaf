"""ONNX operators as nodes of an ``fx`` graph: layers become modules, the rest functions of torch.

Only inference is described: dropout hands on its input, and normalisation uses its statistics.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor, fx, nn
from torch.nn import functional as F

from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.pipeline import onnx_layers as layers
from trt_layermerge.pipeline.onnx_drawing import Drawing, constant, numbers

FLOATS = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.DOUBLE,
    TensorProto.BFLOAT16,
    np.dtype("float16"),
    np.dtype("float32"),
    np.dtype("float64"),
)
"""What a ``Cast`` may turn values into, since all are single precision here."""

Operator: TypeAlias = Callable[[Drawing, Any], fx.Node]


def _clip(drawing: Drawing, node: Any) -> fx.Node:
    low, high = constant(node, 1, "min"), constant(node, 2, "max")
    bounds = [None if b is None else float(b) for b in (low, high)]
    return drawing.call(torch.clamp, drawing.value(node.inputs[0]), *bounds)


def _multiply(drawing: Drawing, node: Any) -> fx.Node:
    """Draws a product; ``x · gate(x)`` is an activation with a name of its own."""
    for value, gate in (node.inputs, node.inputs[::-1]):
        made = gate.inputs[0] if gate.inputs else None
        if made is not None and made.inputs[0] is value:
            function = _gated(made)
            if function is not None:
                return drawing.call(function, drawing.value(value))
    return drawing.call(operator.mul, *(drawing.value(x) for x in node.inputs))


def _gated(node: Any) -> Callable[..., Tensor] | None:
    if node.op == "Sigmoid":
        return F.silu
    if node.op == "HardSigmoid" and _hard_sigmoid_is_torchs(node):
        return F.hardswish
    return None


def _hard_sigmoid_is_torchs(node: Any) -> bool:
    slope, offset = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
    return bool(abs(slope - 1 / 6) < 1e-6 and offset == 0.5)


def _hard_sigmoid(drawing: Drawing, node: Any) -> fx.Node:
    x = drawing.value(node.inputs[0])
    if _hard_sigmoid_is_torchs(node):
        return drawing.call(F.hardsigmoid, x)
    line = drawing.call(operator.mul, x, float(node.attrs.get("alpha", 0.2)))
    line = drawing.call(operator.add, line, float(node.attrs.get("beta", 0.5)))
    return drawing.call(torch.clamp, line, 0.0, 1.0)


def _reduce_mean(drawing: Drawing, node: Any) -> fx.Node:
    rank = len(node.inputs[0].shape)
    axes = constant(node, 1, "axes")
    dims = tuple(range(rank)) if axes is None else tuple(a % rank for a in numbers(axes))
    keep = bool(node.attrs.get("keepdims", 1))
    return drawing.call(torch.mean, drawing.value(node.inputs[0]), dims, keepdim=keep)


def _reshape(drawing: Drawing, node: Any) -> fx.Node:
    """Draws a reshape; a first size that is the example's batch follows the batch instead."""
    x, shape = drawing.value(node.inputs[0]), list(numbers(constant(node, 1)))
    known = node.inputs[0].shape
    shape = [known[i] if size == 0 and i else size for i, size in enumerate(shape)]
    if shape[0] in (0, known[0]) or (shape[0] == -1 and node.outputs[0].shape[0] == known[0]):
        if len(shape) == 2:
            return drawing.call(torch.flatten, x, 1)
        batch = drawing.graph.call_method("size", (x, 0))
        return drawing.call(torch.reshape, x, (batch, *shape[1:]))
    return drawing.call(torch.reshape, x, tuple(shape))


def _axes(drawing: Drawing, node: Any) -> fx.Node:
    """Draws ``Squeeze`` and ``Unsqueeze``."""
    value = drawing.value(node.inputs[0])
    rank = max(len(node.inputs[0].shape), len(node.outputs[0].shape))
    axes = constant(node, 1, "axes")
    if axes is None:
        axes = [i for i, size in enumerate(node.inputs[0].shape) if size == 1 and i]
    dims = sorted(a % rank for a in numbers(axes))
    if node.op == "Squeeze":
        return drawing.call(torch.squeeze, value, tuple(dims))
    for dim in dims:
        value = drawing.call(torch.unsqueeze, value, dim)
    return value


def _pad(drawing: Drawing, node: Any) -> fx.Node:
    pads = numbers(constant(node, 1, "pads"))
    value = float(constant(node, 2, "value", 0.0))
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    mode, half = node.attrs.get("mode", "constant"), len(pads) // 2
    sides = [p for i in reversed(range(half)) for p in (pads[i], pads[i + half])]
    if mode not in modes or len(node.inputs) > 3:
        raise UnsupportedModelError(f"the ONNX node {node.name} pads in a way that is not known")
    if mode != "constant":
        return drawing.call(F.pad, drawing.value(node.inputs[0]), sides[:4], modes[mode])
    return drawing.call(F.pad, drawing.value(node.inputs[0]), sides, "constant", value)


def _slice(drawing: Drawing, node: Any) -> fx.Node:
    starts, ends = (numbers(constant(node, i, n)) for i, n in ((1, "starts"), (2, "ends")))
    axes = numbers(constant(node, 3, "axes", range(len(starts))))
    steps = numbers(constant(node, 4, None, [1] * len(starts)))
    rank = len(node.inputs[0].shape)
    cuts = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cuts[axis % rank] = slice(start, min(end, 2**31), step)
    return drawing.call(operator.getitem, drawing.value(node.inputs[0]), tuple(cuts))


def _split(drawing: Drawing, node: Any) -> fx.Node:
    axis = int(node.attrs.get("axis", 0))
    sizes = [int(output.shape[axis]) for output in node.outputs]
    parts = drawing.call(torch.split, drawing.value(node.inputs[0]), sizes, axis)
    for i, output in enumerate(node.outputs):
        drawing.values[output.name] = drawing.call(operator.getitem, parts, i)
    return drawing.values[node.outputs[0].name]


def _concat(drawing: Drawing, node: Any) -> fx.Node:
    values = [drawing.value(x) for x in node.inputs]
    return drawing.call(torch.cat, values, int(node.attrs["axis"]))


def _function(function: Callable[..., Any], **defaults: Any) -> Operator:
    """Returns: call a function on all inputs, with attributes of ONNX under torch's names.

    ``defaults`` maps each option of the function to the ONNX attribute and its default.
    """

    def draw(drawing: Drawing, node: Any) -> fx.Node:
        options = {k: node.attrs.get(name, value) for k, (name, value) in defaults.items()}
        return drawing.call(function, *(drawing.value(x) for x in node.inputs), **options)

    return draw


def _transpose(drawing: Drawing, node: Any) -> fx.Node:
    order = node.attrs.get("perm") or reversed(range(len(node.inputs[0].shape)))
    return drawing.call(torch.permute, drawing.value(node.inputs[0]), numbers(order))


def _cast(drawing: Drawing, node: Any) -> fx.Node:
    if node.attrs["to"] not in FLOATS:
        raise UnsupportedModelError(
            f"the ONNX node {node.name} turns values into integers, which nothing can be trained "
            "through; cut the file before it"
        )
    return drawing.value(node.inputs[0])


def _pass_on(drawing: Drawing, node: Any) -> fx.Node:
    return drawing.value(node.inputs[0])


OPERATORS: Mapping[str, Operator] = {
    "Add": _function(operator.add),
    "AveragePool": layers.average_pool,
    "BatchNormalization": layers.batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": layers.conv,
    "Div": _function(operator.truediv),
    "Dropout": _pass_on,
    "Elu": _function(F.elu, alpha=("alpha", 1.0)),
    "Erf": _function(torch.erf),
    "Exp": _function(torch.exp),
    "Flatten": _function(torch.flatten, start_dim=("axis", 1)),
    "Gelu": _function(F.gelu, approximate=("approximate", "none")),
    "Gemm": layers.gemm,
    "GlobalAveragePool": lambda d, node: d.layer(node, nn.AdaptiveAvgPool2d(1)),
    "GlobalMaxPool": lambda d, node: d.layer(node, nn.AdaptiveMaxPool2d(1)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _function(F.hardswish),
    "Identity": _pass_on,
    "LeakyRelu": _function(F.leaky_relu, negative_slope=("alpha", 0.01)),
    "LogSoftmax": _function(F.log_softmax, dim=("axis", -1)),
    "MatMul": layers.mat_mul,
    "MaxPool": layers.max_pool,
    "Mish": _function(F.mish),
    "Mul": _multiply,
    "Pad": _pad,
    "Pow": _function(torch.pow),
    "ReduceMean": _reduce_mean,
    "Relu": _function(F.relu),
    "Reshape": _reshape,
    "Sigmoid": _function(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _function(F.softmax, dim=("axis", -1)),
    "Softplus": _function(F.softplus),
    "Split": _split,
    "Sqrt": _function(torch.sqrt),
    "Squeeze": _axes,
    "Sub": _function(operator.sub),
    "Tanh": _function(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _axes,
}
"""How each known operator is drawn."""
