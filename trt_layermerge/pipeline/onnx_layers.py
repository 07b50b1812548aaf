"""ONNX operators with weights or windows as modules of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from trt_layermerge.core.conv import Pads
from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.pipeline.onnx_drawing import Drawing, constant, floats, numbers
from trt_layermerge.tracing.conv import PaddedConv2d


def _pads(node: Any, kernel: Sequence[int]) -> Pads:
    """Returns (top, left, bottom, right), also where ONNX leaves them to be computed."""
    mode = node.attrs.get("auto_pad", "NOTSET")
    if not mode.startswith("SAME"):
        top, left, bottom, right = node.attrs.get("pads", (0, 0, 0, 0))
        return top, left, bottom, right
    strides, dilations = (node.attrs.get(k, (1, 1)) for k in ("strides", "dilations"))
    total = [
        max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        for size, k, s, d in zip(node.inputs[0].shape[2:], kernel, strides, dilations, strict=True)
    ]
    (low, left), (high, right) = [t // 2 for t in total], [t - t // 2 for t in total]
    return (low, left, high, right) if mode == "SAME_UPPER" else (high, right, low, left)


def conv(drawing: Drawing, node: Any) -> fx.Node:
    """Draws ``Conv``, with the padding before it. Raises ``UnsupportedModelError``."""
    weight, bias = floats(constant(node, 1)), constant(node, 2)
    if weight.ndim != 4:
        raise UnsupportedModelError(
            f"the ONNX node {node.name} is a convolution over {weight.ndim - 2} dimensions, and "
            "only networks of images can be made shallower"
        )
    groups, kernel = int(node.attrs.get("group", 1)), _two(weight.shape[2:])
    strides, dilations = (_two(node.attrs.get(k, (1, 1))) for k in ("strides", "dilations"))
    source, outer = _padding_before(node.inputs[0])
    top, left, bottom, right = (a + b for a, b in zip(outer, _pads(node, kernel), strict=True))
    uneven, padding = _split_pads((top, left, bottom, right))
    channels = weight.shape[1] * groups, weight.shape[0]
    conv = nn.Conv2d(*channels, kernel, strides, padding, dilations, groups, bias is not None)
    if uneven:
        conv = PaddedConv2d(conv, (top, left, bottom, right))
    return drawing.layer(node, _filled(conv, weight=weight, bias=bias), source)


def _padding_before(tensor: Any) -> tuple[Any, Pads]:
    """Returns what a tensor was padded from with zeros at its sides, or itself, and the zeros."""
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or node.op != "Pad" or node.attrs.get("mode", "constant") != "constant":
        return tensor, (0, 0, 0, 0)
    pads = numbers(constant(node, 1, "pads"))
    value = constant(node, 2, "value", 0.0)
    if float(value) or len(pads) != 8 or any(pads[i] for i in (0, 1, 4, 5)) or min(pads) < 0:
        return tensor, (0, 0, 0, 0)
    return node.inputs[0], (pads[2], pads[3], pads[6], pads[7])


def _two(values: Any) -> tuple[int, int]:
    first, second = numbers(values)
    return first, second


def _filled(module: nn.Module, **values: Any) -> nn.Module:
    """Returns the module with parameters and buffers overwritten; None is left out."""
    for name, value in values.items():
        if value is not None:
            getattr(module, name).data.copy_(floats(value))
    return module


def batch_norm(drawing: Drawing, node: Any) -> fx.Node:
    """Draws ``BatchNormalization`` with its statistics."""
    weight, bias, mean, var = (constant(node, i) for i in range(1, 5))
    kind = nn.BatchNorm2d if len(node.inputs[0].shape) == 4 else nn.BatchNorm1d
    norm = kind(len(weight), eps=float(node.attrs.get("epsilon", 1e-5)))
    values = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    return drawing.layer(node, _filled(norm, **values))


def max_pool(drawing: Drawing, node: Any) -> fx.Node:
    """Draws ``MaxPool``."""
    kernel, strides, dilations = _window(node)
    pads = _pads(node, kernel)
    uneven, padding = _split_pads(pads)
    ceil = bool(node.attrs.get("ceil_mode", 0))
    pool: nn.Module = nn.MaxPool2d(kernel, strides, padding, dilations, ceil_mode=ceil)
    if uneven:
        top, left, bottom, right = pads
        pool = nn.Sequential(nn.ConstantPad2d((left, right, top, bottom), -torch.inf), pool)
    return drawing.layer(node, pool)


def average_pool(drawing: Drawing, node: Any) -> fx.Node:
    """Draws ``AveragePool``. Raises ``UnsupportedModelError`` where torch has no such layer."""
    kernel, strides, dilations = _window(node)
    uneven, padding = _split_pads(_pads(node, kernel))
    if uneven or dilations != (1, 1):
        raise UnsupportedModelError(
            f"the ONNX node {node.name} averages over windows with uneven padding or with gaps, "
            "which torch has no layer for; pad on both sides alike"
        )
    ceil, counted = (bool(node.attrs.get(k, 0)) for k in ("ceil_mode", "count_include_pad"))
    return drawing.layer(node, nn.AvgPool2d(kernel, strides, padding, ceil, counted))


def _split_pads(pads: Pads) -> tuple[bool, tuple[int, int]]:
    """Returns whether the sides differ, and the padding left to a layer: none if they do."""
    uneven = pads[:2] != pads[2:]
    return uneven, (0, 0) if uneven else pads[:2]


def _window(node: Any) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Returns kernel, strides and dilations of a pooling."""
    strides, dilations = (node.attrs.get(k, (1, 1)) for k in ("strides", "dilations"))
    return _two(node.attrs["kernel_shape"]), _two(strides), _two(dilations)


def gemm(drawing: Drawing, node: Any) -> fx.Node:
    """Draws ``Gemm`` as a linear layer. Raises ``UnsupportedModelError``."""
    if node.attrs.get("transA", 0):
        raise UnsupportedModelError(f"the ONNX node {node.name} transposes its input")
    weight = floats(constant(node, 1)) * float(node.attrs.get("alpha", 1.0))
    weight, bias = weight if node.attrs.get("transB", 0) else weight.T, constant(node, 2)
    if bias is not None:
        scaled = floats(bias).flatten() * float(node.attrs.get("beta", 1.0))
        bias = scaled.expand(len(weight))
    return drawing.layer(node, _linear(weight, bias))


def mat_mul(drawing: Drawing, node: Any) -> fx.Node:
    """Draws ``MatMul``, a linear layer where its second factor is a constant matrix."""
    if hasattr(node.inputs[1], "values") and node.inputs[1].values.ndim == 2:
        return drawing.layer(node, _linear(floats(node.inputs[1].values).T, None))
    return drawing.call(torch.matmul, *(drawing.value(x) for x in node.inputs))


def _linear(weight: Tensor, bias: Any) -> nn.Module:
    rows, columns = weight.shape
    return _filled(nn.Linear(columns, rows, bias=bias is not None), weight=weight, bias=bias)
