"""ONNX operators as nodes of an ``fx`` graph: layers become modules, the rest functions of torch.

Only inference is described: dropout hands on its input, and normalisation uses its statistics.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from onnx import helper
from torch import fx, nn
from torch.nn import functional as F

from trt_layermerge.core.activation import ONNX_OPERATORS
from trt_layermerge.onnx_reader import layers, products, shaping
from trt_layermerge.onnx_reader.converter import Converter, constant, numbers, sizes
from trt_layermerge.onnx_reader.resize import resize
from trt_layermerge.tracing.activations import FORMS

Operator: TypeAlias = Callable[[Converter, Any], fx.Node]


def _clip(converter: Converter, node: Any) -> fx.Node:
    bounds = products.clip_bounds(node)
    return converter.call(torch.clamp, converter.value(node.inputs[0]), *bounds)


def _hard_sigmoid(converter: Converter, node: Any) -> fx.Node:
    x = converter.value(node.inputs[0])
    if products.hard_sigmoid_is_torchs(node):
        return converter.call(F.hardsigmoid, x)
    line = converter.call(operator.mul, x, float(node.attrs.get("alpha", 0.2)))
    line = converter.call(operator.add, line, float(node.attrs.get("beta", 0.5)))
    return converter.call(torch.clamp, line, 0.0, 1.0)


def _reduce(function: Callable[..., Any]) -> Operator:
    """Returns: reduce over some axes, or over all where none are given."""

    def convert(converter: Converter, node: Any) -> fx.Node:
        x, axes = converter.value(node.inputs[0]), numbers(constant(node, 1, "axes", ()))
        if not axes and node.attrs.get("noop_with_empty_axes", 0):
            return x
        rank = len(sizes(node.inputs[0]))
        dims = tuple(a % rank for a in axes or range(rank))
        keep = bool(node.attrs.get("keepdims", 1))
        return converter.call(function, x, dim=dims, keepdim=keep)

    return convert


def _over_axis(function: Callable[..., Any]) -> Operator:
    """Returns: a softmax over one axis; before opset 13, over all axes from that one on."""

    def convert(converter: Converter, node: Any) -> fx.Node:
        x, known, old = converter.value(node.inputs[0]), sizes(node.inputs[0]), converter.opset < 13
        axis = int(node.attrs.get("axis", 1 if old else -1)) % len(known)
        if not old or math.prod(known[axis + 1 :]) == 1:
            return converter.call(function, x, dim=axis)
        rows = converter.call(function, converter.call(torch.flatten, x, axis), dim=axis)
        return converter.call(torch.unflatten, rows, axis, known[axis:])

    return convert


def _function(function: Callable[..., Any], **defaults: Any) -> Operator:
    """Returns: call a function on all inputs, with attributes of ONNX under torch's names.

    ``defaults`` maps each option of the function to the ONNX attribute and its default.
    """

    def convert(converter: Converter, node: Any) -> fx.Node:
        options = {k: node.attrs.get(name, value) for k, (name, value) in defaults.items()}
        return converter.call(function, *(converter.value(x) for x in node.inputs), **options)

    return convert


def _pairwise(function: Callable[..., Any]) -> Operator:
    """Returns: join any number of inputs two by two, as ``Max`` and ``Sum`` do."""

    def convert(converter: Converter, node: Any) -> fx.Node:
        values = [converter.value(x) for x in node.inputs]
        return functools.reduce(lambda a, b: converter.call(function, a, b), values)

    return convert


def _average(converter: Converter, node: Any) -> fx.Node:
    """Converts ``Mean`` of several tensors."""
    total = _pairwise(operator.add)(converter, node)
    return converter.call(operator.truediv, total, len(node.inputs))


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
        raise ValueError("it turns values into integers, which nothing can be trained through")
    x = converter.value(node.inputs[0])
    if converter.dtype is not None:
        return x
    return converter.graph.call_method("to", (x, getattr(torch, dtype.name)))


def _where(converter: Converter, node: Any) -> fx.Node:
    """Converts ``Where`` of a condition that is known."""
    constant(node, 0)
    return converter.call(torch.where, *(converter.value(x) for x in node.inputs))


def _einsum(converter: Converter, node: Any) -> fx.Node:
    values = [converter.value(x) for x in node.inputs]
    return converter.call(torch.einsum, node.attrs["equation"], *values)


def _pass_on(converter: Converter, node: Any) -> fx.Node:
    return converter.value(node.inputs[0])


OPERATORS: Mapping[str, Operator] = {
    **{own.name: _activation(kind) for kind, own in ONNX_OPERATORS.items()},
    "Abs": _function(torch.abs),
    "Add": _function(operator.add),
    "AveragePool": layers.average_pool,
    "BatchNormalization": layers.batch_norm,
    "Cast": _cast,
    "Ceil": _function(torch.ceil),
    "Celu": _function(F.celu, alpha=("alpha", 1.0)),
    "Clip": _clip,
    "Concat": shaping.concat,
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "Cos": _function(torch.cos),
    "DepthToSpace": shaping.depth_to_space,
    "Div": products.divide,
    "Dropout": _pass_on,
    "Einsum": _einsum,
    "Erf": _function(torch.erf),
    "Exp": _function(torch.exp),
    "Expand": shaping.expand,
    "Flatten": shaping.flatten,
    "Floor": _function(torch.floor),
    "Gather": shaping.gather,
    "Gelu": _function(F.gelu, approximate=("approximate", "none")),
    "Gemm": layers.gemm,
    "GlobalAveragePool": lambda d, node: d.layer(node, nn.AdaptiveAvgPool2d(1)),
    "GlobalMaxPool": lambda d, node: d.layer(node, nn.AdaptiveMaxPool2d(1)),
    "GroupNormalization": layers.group_norm,
    "HardSigmoid": _hard_sigmoid,
    "Identity": _pass_on,
    "InstanceNormalization": layers.instance_norm,
    "LRN": layers.local_response_norm,
    "LayerNormalization": layers.layer_norm,
    "Log": _function(torch.log),
    "LogSoftmax": _over_axis(F.log_softmax),
    "MatMul": layers.mat_mul,
    "Max": _pairwise(torch.maximum),
    "MaxPool": layers.max_pool,
    "Mean": _average,
    "Min": _pairwise(torch.minimum),
    "Mish": _function(F.mish),
    "Mul": products.multiply,
    "Neg": _function(operator.neg),
    "PRelu": layers.prelu,
    "Pad": shaping.pad,
    "Pow": _function(torch.pow),
    "Reciprocal": _function(torch.reciprocal),
    "ReduceL2": _reduce(torch.linalg.vector_norm),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "Reshape": shaping.reshape,
    "Resize": resize,
    "Round": _function(torch.round),
    "Sin": _function(torch.sin),
    "Slice": shaping.cut_out,
    "Softmax": _over_axis(F.softmax),
    "Softplus": _function(F.softplus),
    "Softsign": _function(F.softsign),
    "SpaceToDepth": shaping.space_to_depth,
    "Split": shaping.split,
    "Sqrt": _function(torch.sqrt),
    "Squeeze": shaping.axes,
    "Sub": _function(operator.sub),
    "Sum": _pairwise(operator.add),
    "Tile": shaping.tile,
    "Transpose": shaping.transpose,
    "Unsqueeze": shaping.axes,
    "Upsample": resize,
    "Where": _where,
}
"""How each known operator is converted."""
