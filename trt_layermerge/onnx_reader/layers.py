"""ONNX operators with weights or windows, and those that normalise, as modules of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from trt_layermerge.core.conv import Pads
from trt_layermerge.onnx_reader.converter import Converter, constant, filled, numbers, sizes
from trt_layermerge.tracing.forms import pad_with


def conv(converter: Converter, node: Any) -> fx.Node:
    """Converts ``Conv``, with the padding before it. Raises ``ValueError``."""
    weight, bias = _weights(converter, node)
    groups, kernel = int(node.attrs.get("group", 1)), _two(weight.shape[2:])
    strides, dilations = (_two(node.attrs.get(k, (1, 1))) for k in ("strides", "dilations"))
    source, outer = _padding_before(node.inputs[0])
    top, left, bottom, right = (a + b for a, b in zip(outer, _pads(node, kernel), strict=True))
    channels = weight.shape[1] * groups, weight.shape[0]
    biased = bias is not None
    layer = nn.Conv2d(*channels, kernel, strides, 0, dilations, groups, biased, device="meta")
    pad_with(layer, (top, left, bottom, right))
    return converter.layer(node, filled(layer, weight=weight, bias=bias), source)


def conv_transpose(converter: Converter, node: Any) -> fx.Node:
    """Converts ``ConvTranspose``; sides that are cut off unevenly are cut behind it.

    Raises:
        ValueError: If it is not over images.
    """
    weight, bias = _weights(converter, node)
    groups, kernel = int(node.attrs.get("group", 1)), _two(weight.shape[2:])
    strides, dilations, extra = (
        _two(node.attrs.get(k, (d, d)))
        for k, d in (("strides", 1), ("dilations", 1), ("output_padding", 0))
    )
    top, left, bottom, right = _cuts(node, kernel, strides, dilations, extra)
    uneven, padding = _split_pads((top, left, bottom, right))
    channels = weight.shape[0], weight.shape[1] * groups
    biased = bias is not None
    layer = nn.ConvTranspose2d(
        *channels, kernel, strides, padding, extra, groups, biased, dilations, device="meta"
    )
    module: nn.Module = filled(layer, weight=weight, bias=bias)
    if uneven:
        module = nn.Sequential(module, nn.ZeroPad2d((-left, -right, -top, -bottom)))
    return converter.layer(node, module)


def _weights(converter: Converter, node: Any) -> tuple[Tensor, Tensor | None]:
    """Returns weight and bias of a convolution over images. Raises ``ValueError``."""
    weight, bias = converter.tensor(constant(node, 1)), constant(node, 2)
    if weight.ndim != 4:
        raise ValueError(
            f"it is a convolution over {weight.ndim - 2} dimensions, and only networks of images "
            "can be made shallower"
        )
    return weight, None if bias is None else converter.tensor(bias)


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
    return _halves(total, more_in_front=mode == "SAME_LOWER")


def _cuts(
    node: Any,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    extra: Sequence[int],
) -> Pads:
    """Returns what a transposed convolution cuts off at (top, left, bottom, right)."""
    mode = node.attrs.get("auto_pad", "NOTSET")
    if not mode.startswith("SAME") and "output_shape" not in node.attrs:
        top, left, bottom, right = node.attrs.get("pads", (0, 0, 0, 0))
        return top, left, bottom, right
    sizes = zip(node.inputs[0].shape[2:], node.outputs[0].shape[2:], strict=True)
    windows = zip(kernel, strides, dilations, extra, strict=True)
    total = [
        s * (size - 1) + e + d * (k - 1) + 1 - out
        for (size, out), (k, s, d, e) in zip(sizes, windows, strict=True)
    ]
    if min(total) < 0:
        raise ValueError(f"its output is {-min(total)} larger than what it computes")
    return _halves(total, more_in_front=mode != "SAME_UPPER")


def _halves(total: Sequence[int], *, more_in_front: bool) -> Pads:
    (top, left), (bottom, right) = [t // 2 for t in total], [t - t // 2 for t in total]
    return (bottom, right, top, left) if more_in_front else (top, left, bottom, right)


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


def prelu(converter: Converter, node: Any) -> fx.Node:
    """Converts ``PRelu`` with one slope, or one per channel. Raises ``ValueError``."""
    slope, channels = np.asarray(constant(node, 1)), node.inputs[0].shape[1]
    rank = len(node.inputs[0].shape)
    shape = (1,) * (rank - slope.ndim) + slope.shape
    if slope.size > 1 and shape != (1, channels, *[1] * (rank - 2)):
        raise ValueError(
            f"it has slopes of shape {slope.shape}, which torch has no layer for; give one slope, "
            "or one per channel"
        )
    layer = nn.PReLU(slope.size, device="meta")
    return converter.layer(node, filled(layer, weight=converter.tensor(slope.flatten())))


def max_pool(converter: Converter, node: Any) -> fx.Node:
    """Converts ``MaxPool``."""
    kernel, strides, dilations = _window(node)
    pads = _pads(node, kernel)
    uneven, padding = _split_pads(pads)
    ceil = bool(node.attrs.get("ceil_mode", 0))
    pool: nn.Module = nn.MaxPool2d(kernel, strides, padding, dilations, ceil_mode=ceil)
    if uneven:
        top, left, bottom, right = pads
        pool = nn.Sequential(nn.ConstantPad2d((left, right, top, bottom), -torch.inf), pool)
    return converter.layer(node, pool)


def average_pool(converter: Converter, node: Any) -> fx.Node:
    """Converts ``AveragePool``. Raises ``ValueError`` where torch has no such layer."""
    kernel, strides, dilations = _window(node)
    uneven, padding = _split_pads(_pads(node, kernel))
    if uneven or dilations != (1, 1):
        raise ValueError(
            "it averages over windows with uneven padding or with gaps, which torch has no layer "
            "for; pad on both sides alike"
        )
    ceil, counted = (bool(node.attrs.get(k, 0)) for k in ("ceil_mode", "count_include_pad"))
    return converter.layer(node, nn.AvgPool2d(kernel, strides, padding, ceil, counted))


def _split_pads(pads: Pads) -> tuple[bool, tuple[int, int]]:
    """Returns whether the sides differ, and the padding left to a layer: none if they do."""
    uneven = pads[:2] != pads[2:]
    return uneven, (0, 0) if uneven else pads[:2]


def _window(node: Any) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Returns kernel, strides and dilations of a pooling."""
    strides, dilations = (node.attrs.get(k, (1, 1)) for k in ("strides", "dilations"))
    return _two(node.attrs["kernel_shape"]), _two(strides), _two(dilations)


def gemm(converter: Converter, node: Any) -> fx.Node:
    """Converts ``Gemm`` as a linear layer. Raises ``ValueError``."""
    if node.attrs.get("transA", 0):
        raise ValueError("it transposes its input")
    weight = converter.tensor(constant(node, 1)) * float(node.attrs.get("alpha", 1.0))
    weight, bias = weight if node.attrs.get("transB", 0) else weight.T, constant(node, 2)
    if bias is not None:
        scaled = converter.tensor(bias).flatten() * float(node.attrs.get("beta", 1.0))
        bias = scaled.expand(len(weight))
    return converter.layer(node, _linear(weight, bias))


def mat_mul(converter: Converter, node: Any) -> fx.Node:
    """Converts ``MatMul``, a linear layer where its second factor is a constant matrix."""
    if hasattr(node.inputs[1], "values") and node.inputs[1].values.ndim == 2:
        return converter.layer(node, _linear(converter.tensor(node.inputs[1].values).T, None))
    return converter.call(torch.matmul, *(converter.value(x) for x in node.inputs))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    linear: nn.Module = filled(layer, weight=weight, bias=bias)
    return linear


def batch_norm(converter: Converter, node: Any) -> fx.Node:
    """Converts ``BatchNormalization`` with its statistics."""
    weight, bias, mean, var = (converter.tensor(constant(node, i)) for i in range(1, 5))
    kind = nn.BatchNorm2d if len(node.inputs[0].shape) == 4 else nn.BatchNorm1d
    norm = kind(len(weight), eps=float(node.attrs.get("epsilon", 1e-5)))
    values = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    return converter.layer(node, filled(norm, **values))


def instance_norm(converter: Converter, node: Any) -> fx.Node:
    """Converts ``InstanceNormalization`` of images, or of groups of channels laid out in rows."""
    weight, bias = (converter.tensor(constant(node, i)) for i in (1, 2))
    kind = nn.InstanceNorm2d if len(sizes(node.inputs[0])) == 4 else nn.InstanceNorm1d
    norm = kind(len(weight), float(node.attrs.get("epsilon", 1e-5)), affine=True)
    return converter.layer(node, filled(norm, weight=weight, bias=bias))


def layer_norm(converter: Converter, node: Any) -> fx.Node:
    """Converts ``LayerNormalization`` over the last axes, with one weight for each of its values.

    Raises:
        ValueError: If its weights are shared.
    """
    known = sizes(node.inputs[0])
    normed = known[int(node.attrs.get("axis", -1)) % len(known) :]
    weight, bias = constant(node, 1), constant(node, 2)
    if tuple(weight.shape) != normed:
        raise ValueError(
            f"it normalises values of shape {normed} with weights of shape {tuple(weight.shape)}, "
            "which torch has no layer for"
        )
    norm = nn.LayerNorm(normed, float(node.attrs.get("epsilon", 1e-5)), bias=bias is not None)
    biases = {} if bias is None else {"bias": converter.tensor(bias)}
    return converter.layer(node, filled(norm, weight=converter.tensor(weight), **biases))


def group_norm(converter: Converter, node: Any) -> fx.Node:
    """Converts ``GroupNormalization``; opset 18 has one weight a group, 21 one a channel."""
    channels, groups = sizes(node.inputs[0])[1], int(node.attrs["num_groups"])
    weight, bias = (converter.tensor(constant(node, i)) for i in (1, 2))
    weight, bias = (v.repeat_interleave(channels // len(v)) for v in (weight, bias))
    norm = nn.GroupNorm(groups, channels, float(node.attrs.get("epsilon", 1e-5)))
    return converter.layer(node, filled(norm, weight=weight, bias=bias))


def local_response_norm(converter: Converter, node: Any) -> fx.Node:
    """Converts ``LRN`` over an odd number of channels. Raises ``ValueError``."""
    size = int(node.attrs["size"])
    if size % 2 == 0:
        raise ValueError(f"it normalises over {size} channels, and torch centres an odd number")
    defaults = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}
    alpha, beta, bias = (float(node.attrs.get(k, v)) for k, v in defaults.items())
    return converter.layer(node, nn.LocalResponseNorm(size, alpha, beta, bias))
