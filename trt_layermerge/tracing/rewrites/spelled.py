"""Calls of ``conv2d`` with a stored weight become convolution modules.

Nothing is computed: weight and bias are what parameters and buffers of the network say, such as the
binomial filter of a blur. What comes of buffers is not trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from trt_layermerge.tracing.reading import Reading, shape_of
from trt_layermerge.tracing.rewrites.constants import Constant, constant_of
from trt_layermerge.tracing.rewrites.nodes import call_in_place

_CALLS = {functional.conv2d, torch.conv2d}
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def spell_convolutions(reading: Reading) -> None:
    """Makes modules of calls whose weight nothing else reads, in place."""
    for node in reading.order:
        if node.op != "call_function" or node.target not in _CALLS or len(shape_of(node)) != 4:
            continue
        given = dict(zip(_ARGUMENTS, node.args, strict=False)) | node.kwargs
        conv, source = _conv(reading, given), given.get("input")
        if conv is not None and isinstance(source, fx.Node):
            call_in_place(reading.network, node, conv, source)


def _conv(reading: Reading, given: dict[str, Any]) -> nn.Conv2d | None:
    """Returns the convolution that a call computes, or None if its weight is not fixed."""
    weight, stored = constant_of(reading, given.get("weight")), given.get("bias")
    bias = None if stored is None else constant_of(reading, stored)
    options = [
        given.get(name, default) for name, default in zip(_ARGUMENTS[3:], (1, 0, 1, 1), strict=True)
    ]
    if weight is None or not weight.alone or (stored is not None and bias is None):
        return None
    if (bias is not None and not bias.alone) or not all(map(_is_plain, options)):
        return None
    stride, padding, dilation, groups = options
    out, inner, *kernel = weight.value.shape
    conv = nn.Conv2d(
        inner * groups,
        out,
        (kernel[0], kernel[1]),
        stride,
        padding,
        dilation,
        groups,
        bias is not None,
        device="meta",
    )
    conv.weight = _parameter(weight)
    if bias is not None:
        conv.bias = _parameter(bias)
    return conv


def _parameter(constant: Constant) -> nn.Parameter:
    return nn.Parameter(constant.value.to(constant.dtype).clone(), constant.trained)


def _is_plain(option: Any) -> bool:
    """Whether an option is known while tracing."""
    return isinstance(option, int | str) or (
        isinstance(option, tuple | list) and all(isinstance(part, int) for part in option)
    )
