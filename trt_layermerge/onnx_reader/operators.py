"""ONNX operators as nodes of an ``fx`` graph: layers become modules, the rest functions of torch.

Only inference is described: dropout hands on its input, and normalisation uses its statistics.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from onnx import helper
from torch import Tensor, fx, nn
from torch.nn import functional as F

from trt_layermerge.core.activation import ONNX_OPERATORS
from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.onnx_reader import layers
from trt_layermerge.onnx_reader.converter import Converter, constant, numbers
from trt_layermerge.onnx_reader.resize import resize
from trt_layermerge.tracing.activations import FORMS

Operator: TypeAlias = Callable[[Converter, Any], fx.Node]


def _clip(converter: Converter, node: Any) -> fx.Node:
    low, high = constant(node, 1, "min"), constant(node, 2, "max")
    bounds = [None if b is None else float(b) for b in (low, high)]
    return converter.call(torch.clamp, converter.value(node.inputs[0]), *bounds)


def _multiply(converter: Converter, node: Any) -> fx.Node:
    """Converts a product; some are activations with a name of their own."""
    value = _gelus_input(node)
    if value is not None:
        return converter.call(F.gelu, converter.value(value))
    for value, gate in _both_ways(node):
        function = _gated(value, gate)
        if function is not None:
            return converter.call(function, converter.value(value))
    return converter.call(operator.mul, *(converter.value(x) for x in node.inputs))


def _gated(value: Any, gate: Any) -> Callable[..., Tensor] | None:
    """Returns the activation that is ``x · gate(x)``, if it is one."""
    made = _made(gate)
    if made is None:
        return None
    if made.op == "Tanh":
        inner = _made(made.inputs[0], "Softplus")
        return F.mish if inner is not None and inner.inputs[0] is value else None
    if made.inputs[0] is not value:
        return None
    if made.op == "HardSigmoid" and _hard_sigmoid_is_torchs(made):
        return F.hardswish
    return F.silu if made.op == "Sigmoid" else None


def _gelus_input(node: Any) -> Any:
    """Returns x where a product is ``x · (1 + erf(x / √2)) · ½``, else None."""
    product = _made(_beside(node, 0.5), "Mul")
    for value, gate in _both_ways(product):
        erf = _made(_beside(_made(gate, "Add"), 1.0), "Erf")
        inner = None if erf is None else _made(erf.inputs[0], "Div")
        if inner is not None and _beside(inner, 2**0.5) is inner.inputs[0] is value:
            return value
    return None


def _made(tensor: Any, op: str | None = None) -> Any:
    """Returns the node that computes a tensor, if it has this operator, else None."""
    node = tensor.inputs[0] if tensor is not None and tensor.inputs else None
    return node if node is not None and op in (None, node.op) else None


def _beside(node: Any, number: float) -> Any:
    """Returns the input of a node whose other input is a certain number, else None."""
    for tensor, other in _both_ways(node):
        values = getattr(other, "values", None)
        if values is not None and values.size == 1 and abs(float(values.item()) - number) < 1e-3:
            return tensor
    return None


def _both_ways(node: Any) -> tuple[tuple[Any, Any], ...]:
    """Returns the two inputs of a node in both orders; nothing of no node."""
    return () if node is None else (tuple(node.inputs), tuple(node.inputs)[::-1])


def _hard_sigmoid_is_torchs(node: Any) -> bool:
    slope, offset = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
    return bool(abs(slope - 1 / 6) < 1e-6 and offset == 0.5)


def _hard_sigmoid(converter: Converter, node: Any) -> fx.Node:
    x = converter.value(node.inputs[0])
    if _hard_sigmoid_is_torchs(node):
        return converter.call(F.hardsigmoid, x)
    line = converter.call(operator.mul, x, float(node.attrs.get("alpha", 0.2)))
    line = converter.call(operator.add, line, float(node.attrs.get("beta", 0.5)))
    return converter.call(torch.clamp, line, 0.0, 1.0)


def _reduce_mean(converter: Converter, node: Any) -> fx.Node:
    rank = len(node.inputs[0].shape)
    axes = constant(node, 1, "axes")
    dims = tuple(range(rank)) if axes is None else tuple(a % rank for a in numbers(axes))
    keep = bool(node.attrs.get("keepdims", 1))
    return converter.call(torch.mean, converter.value(node.inputs[0]), dims, keepdim=keep)


def _reshape(converter: Converter, node: Any) -> fx.Node:
    """Converts a reshape whose first size is a multiple of the batch; it follows the batch."""
    x, shape = converter.value(node.inputs[0]), list(numbers(constant(node, 1)))
    known, first = node.inputs[0].shape, node.outputs[0].shape[0]
    shape = [known[i] if size == 0 else size for i, size in enumerate(shape)]
    if first == known[0] and len(shape) == 2:
        return converter.call(torch.flatten, x, 1)
    if first % known[0] == 0:
        rest = numbers(node.outputs[0].shape[1:])
        return converter.call(torch.reshape, x, (-1, *rest))
    return converter.call(torch.reshape, x, tuple(shape))


def _flatten(converter: Converter, node: Any) -> fx.Node:
    """Converts to a matrix: the sizes before the axis, and those from it on."""
    x, known = converter.value(node.inputs[0]), node.inputs[0].shape
    axis = int(node.attrs.get("axis", 1))
    axis += len(known) if axis < 0 else 0
    if axis == 1:
        return converter.call(torch.flatten, x, 1)
    columns = math.prod(numbers(known[axis:])) if axis else -1
    return converter.call(torch.reshape, x, (-1 if axis else 1, columns))


def _axes(converter: Converter, node: Any) -> fx.Node:
    """Converts ``Squeeze`` and ``Unsqueeze``."""
    value = converter.value(node.inputs[0])
    rank = max(len(node.inputs[0].shape), len(node.outputs[0].shape))
    axes = constant(node, 1, "axes")
    if axes is None:
        axes = [i for i, size in enumerate(node.inputs[0].shape) if size == 1 and i]
    dims = sorted(a % rank for a in numbers(axes))
    if node.op == "Squeeze":
        return converter.call(torch.squeeze, value, tuple(dims))
    for dim in dims:
        value = converter.call(torch.unsqueeze, value, dim)
    return value


def _pad(converter: Converter, node: Any) -> fx.Node:
    pads = numbers(constant(node, 1, "pads"))
    value = float(constant(node, 2, "value", 0.0))
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    mode, half = node.attrs.get("mode", "constant"), len(pads) // 2
    sides = [p for i in reversed(range(half)) for p in (pads[i], pads[i + half])]
    if mode not in modes or len(node.inputs) > 3:
        raise UnsupportedModelError(f"the ONNX node {node.name} pads in a way that is not known")
    if mode != "constant":
        return converter.call(F.pad, converter.value(node.inputs[0]), sides[:4], modes[mode])
    return converter.call(F.pad, converter.value(node.inputs[0]), sides, "constant", value)


def _slice(converter: Converter, node: Any) -> fx.Node:
    starts, ends = (numbers(constant(node, i, n)) for i, n in ((1, "starts"), (2, "ends")))
    axes = numbers(constant(node, 3, "axes", range(len(starts))))
    steps = numbers(constant(node, 4, None, [1] * len(starts)))
    rank = len(node.inputs[0].shape)
    cuts = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cuts[axis % rank] = slice(start, min(end, 2**31), step)
    return converter.call(operator.getitem, converter.value(node.inputs[0]), tuple(cuts))


def _split(converter: Converter, node: Any) -> fx.Node:
    axis = int(node.attrs.get("axis", 0))
    sizes = [int(output.shape[axis]) for output in node.outputs]
    parts = converter.call(torch.split, converter.value(node.inputs[0]), sizes, axis)
    for i, output in enumerate(node.outputs):
        converter.values[output.name] = converter.call(operator.getitem, parts, i)
    return converter.values[node.outputs[0].name]


def _concat(converter: Converter, node: Any) -> fx.Node:
    values = [converter.value(x) for x in node.inputs]
    return converter.call(torch.cat, values, int(node.attrs["axis"]))


def _function(function: Callable[..., Any], **defaults: Any) -> Operator:
    """Returns: call a function on all inputs, with attributes of ONNX under torch's names.

    ``defaults`` maps each option of the function to the ONNX attribute and its default.
    """

    def convert(converter: Converter, node: Any) -> fx.Node:
        options = {k: node.attrs.get(name, value) for k, (name, value) in defaults.items()}
        return converter.call(function, *(converter.value(x) for x in node.inputs), **options)

    return convert


def _transpose(converter: Converter, node: Any) -> fx.Node:
    order = node.attrs.get("perm") or reversed(range(len(node.inputs[0].shape)))
    return converter.call(torch.permute, converter.value(node.inputs[0]), numbers(order))


def _activation(kind: str) -> Operator:
    """Returns the operator of ONNX for an activation; its attributes default as torch's do."""
    forms, names = FORMS[kind], ONNX_OPERATORS[kind].parameters
    given = zip(names, forms.parameters, strict=True)
    options = {own: (name, default) for name, (own, default) in given}
    return _function(forms.function, **options)


def _cast(converter: Converter, node: Any) -> fx.Node:
    """Converts a cast between float types: to what all are converted to, or to its own."""
    to = node.attrs["to"]
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(to) if isinstance(to, int) else to)
    if dtype.kind not in "fV":  # V: bfloat16
        raise UnsupportedModelError(
            f"the ONNX node {node.name} turns values into integers, which nothing can be trained "
            "through; cut the file before it"
        )
    x = converter.value(node.inputs[0])
    if converter.dtype is not None:
        return x
    return converter.graph.call_method("to", (x, getattr(torch, dtype.name)))


def _pass_on(converter: Converter, node: Any) -> fx.Node:
    return converter.value(node.inputs[0])


OPERATORS: Mapping[str, Operator] = {
    **{own.name: _activation(kind) for kind, own in ONNX_OPERATORS.items()},
    "Add": _function(operator.add),
    "AveragePool": layers.average_pool,
    "BatchNormalization": layers.batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "Div": _function(operator.truediv),
    "Dropout": _pass_on,
    "Erf": _function(torch.erf),
    "Exp": _function(torch.exp),
    "Flatten": _flatten,
    "Gelu": _function(F.gelu, approximate=("approximate", "none")),
    "Gemm": layers.gemm,
    "GlobalAveragePool": lambda d, node: d.layer(node, nn.AdaptiveAvgPool2d(1)),
    "GlobalMaxPool": lambda d, node: d.layer(node, nn.AdaptiveMaxPool2d(1)),
    "HardSigmoid": _hard_sigmoid,
    "Identity": _pass_on,
    "LogSoftmax": _function(F.log_softmax, dim=("axis", -1)),
    "MatMul": layers.mat_mul,
    "MaxPool": layers.max_pool,
    "Mish": _function(F.mish),
    "Mul": _multiply,
    "PRelu": layers.prelu,
    "Pad": _pad,
    "Pow": _function(torch.pow),
    "ReduceMean": _reduce_mean,
    "Reshape": _reshape,
    "Resize": resize,
    "Slice": _slice,
    "Softmax": _function(F.softmax, dim=("axis", -1)),
    "Softplus": _function(F.softplus),
    "Split": _split,
    "Sqrt": _function(torch.sqrt),
    "Squeeze": _axes,
    "Sub": _function(operator.sub),
    "Transpose": _transpose,
    "Unsqueeze": _axes,
}
"""How each known operator is converted."""
