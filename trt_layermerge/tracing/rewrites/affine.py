"""Multiplication, division, addition and subtraction of constants become part of what is near.

An operation y[c] = s[c]·x[c] + t[c], with constants that are numbers or stored tensors, per channel
or for all, is exact in these places:

1. behind a normalisation γ·(x − μ)/σ + β:   γ' = s·γ,   β' = s·β + t
2. behind a convolution:                     W'[o] = s[o]·W[o],   b' = s·b + t
3. before convolutions, where t = 0:         W'[o, c] = W[o, c]·s[c]   (zeros of padding stay zeros)
4. elsewhere, on the way to a convolution, it is a depthwise convolution of one tap of its own.

Layer scale, the affine of HGNet, the scalars of NFNet and the factor of EDSR are such operations.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from trt_layermerge.tracing.conv import is_plain_conv
from trt_layermerge.tracing.forms import ScalingConv2d
from trt_layermerge.tracing.norms import FrozenNorm
from trt_layermerge.tracing.reading import Reading, is_norm, shape_of
from trt_layermerge.tracing.rewrites.constants import Constant, constant_of
from trt_layermerge.tracing.rewrites.nodes import (
    call_in_place,
    leads_to_convolution,
    leave_out,
    type_of,
)
from trt_layermerge.tracing.transparent import ADDITIONS

PRODUCTS: set[Any] = {operator.mul, torch.mul, "mul"}
_QUOTIENTS: set[Any] = {operator.truediv, torch.div, torch.true_divide, "div", "true_divide"}
_SUMS: set[Any] = {*ADDITIONS, "add"}
_DIFFERENCES: set[Any] = {operator.sub, torch.sub, "sub"}


@dataclass(frozen=True)
class _Affine:
    """What one node computes: y = s·x + t.

    Attributes:
        source: x.
        scale: s, ``(C,)``, float64.
        shift: t, likewise, or None for zero.
        trained: Whether training changes them.
    """

    source: fx.Node
    scale: Tensor
    shift: Tensor | None
    trained: bool


def fold_affine(reading: Reading) -> None:
    """Folds constants into what stands beside them, in place; each where it is exact."""
    for node in reversed(reading.order):  # from the end, since several in a row move ahead in turn
        affine = _affine(reading, node)
        if affine and (_fold_back(reading, node, affine) or _fold_ahead(reading, node, affine)):
            leave_out(node, affine.source)
    for node in list(reading.order):
        affine = _affine(reading, node)
        if affine and _fold_back(reading, node, affine):
            leave_out(node, affine.source)
        elif affine and _stand_alone(reading, node, affine):
            reading = Reading(reading.network, reading.opaque)


@torch.no_grad()
def _fold_back(reading: Reading, node: fx.Node, affine: _Affine) -> bool:
    """Makes it part of the normalisation or convolution before it; returns whether there is one."""
    before = reading.value(affine.source)
    module = reading.module(before)
    if module is None or reading.users(before) != (node,):
        return False
    if before in reading.norms and is_norm(module):
        _into_norm(module, affine)
        return True
    if before in reading.convs and is_plain_conv(module):
        weight, bias = module.weight, module.bias
        scale = affine.scale.to(weight.device)
        scaled = weight.double() * scale.reshape(-1, 1, 1, 1)
        module.weight = nn.Parameter(scaled.to(weight), weight.requires_grad)
        shift = _sum(None if bias is None else bias.double() * scale, affine.shift)
        if shift is not None:
            trained = affine.trained if bias is None else bias.requires_grad
            module.bias = nn.Parameter(shift.to(weight), trained)
        return True
    return False


@torch.no_grad()
def _fold_ahead(reading: Reading, node: fx.Node, affine: _Affine) -> bool:
    """Makes it part of the convolutions that alone read it; returns whether that is exact."""
    readers = [(n, reading.module(n)) for n in reading.users(node)]
    convs = [m for n, m in readers if n in reading.convs and m is not None and is_plain_conv(m)]
    if affine.shift is not None or not readers or len(convs) < len(readers):
        return False
    for conv in convs:
        weight, groups = conv.weight, conv.groups
        scale = affine.scale.to(weight.device).reshape(groups, 1, -1)
        split = weight.double().reshape(groups, -1, *weight.shape[1:])
        scaled = (split * scale[..., None, None]).reshape(weight.shape)
        conv.weight = nn.Parameter(scaled.to(weight), weight.requires_grad)
    return True


def _stand_alone(reading: Reading, node: fx.Node, affine: _Affine) -> bool:
    """Makes it a convolution of its own, between what is understood and a convolution."""
    before = reading.value(affine.source)
    known = (reading.convs, reading.norms, reading.activations, reading.additions)

    def also(other: fx.Node) -> bool:
        return _affine(reading, other) is not None

    if not any(before in found for found in known):
        return False
    if not leads_to_convolution(reading, node, also):
        return False
    like = type_of(reading.network)
    shift = None if affine.shift is None else affine.shift.to(like)
    scaling = ScalingConv2d(affine.scale.to(like), shift, affine.trained)
    call_in_place(reading.network, node, scaling, affine.source)
    return True


def _into_norm(norm: nn.BatchNorm2d, affine: _Affine) -> None:
    assert norm.running_mean is not None  # as in every normalisation that is read
    like, kept = norm.running_mean, isinstance(norm, FrozenNorm)
    scale = affine.scale.to(like.device)
    found = {
        "weight": scale if norm.weight is None else norm.weight.double() * scale,
        "bias": _sum(None if norm.bias is None else norm.bias.double() * scale, affine.shift),
    }
    for name, value in found.items():
        before = getattr(norm, name)
        tensor = torch.zeros_like(like) if value is None else value.to(like)
        trained = affine.trained if before is None else before.requires_grad
        setattr(norm, name, tensor if kept else nn.Parameter(tensor, trained))
    norm.affine = True


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second.to(first.device)


def _affine(reading: Reading, node: fx.Node) -> _Affine | None:
    """Returns what a node does if it is affine by constants, per channel of a map; or None."""
    shape = shape_of(node)
    if node.op not in ("call_function", "call_method") or len(shape) != 4:
        return None
    if node in reading.handed_on or node.kwargs or len(node.args) != 2:
        return None
    for place in (0, 1):
        source, other = node.args[place], node.args[1 - place]
        if isinstance(source, fx.Node) and shape_of(source) == shape:
            constant = constant_of(reading, other)
            values = None if constant is None else _per_channel(constant, shape[1])
            if constant is not None and values is not None and not constant_of(reading, source):
                return _meaning(node.target, source, values, place == 0, constant.trained)
    return None


def _meaning(
    target: Any, source: fx.Node, values: Tensor, first: bool, trained: bool
) -> _Affine | None:
    """Returns scale and shift of an operation.

    Args:
        target: Function or method.
        source: The value that depends on the input.
        values: The constant, ``(C,)``.
        first: Whether the source is the first operand.
        trained: Whether training changes the constant.
    """
    ones = torch.ones_like(values)
    if target in PRODUCTS:
        return _Affine(source, values, None, trained)
    if target in _QUOTIENTS and first:
        return _Affine(source, 1 / values, None, trained)
    if target in _SUMS:
        return _Affine(source, ones, values, trained)
    if target in _DIFFERENCES:
        return (
            _Affine(source, ones, -values, trained)
            if first
            else _Affine(source, -ones, values, trained)
        )
    return None


def _per_channel(constant: Constant, channels: int) -> Tensor | None:
    """Returns a constant as one value per channel, or None if it differs within a channel."""
    value = constant.value
    if value.dim() > 4:
        return None
    value = value.reshape((1,) * (4 - value.dim()) + tuple(value.shape))
    if value.shape[0] != 1 or tuple(value.shape[2:]) != (1, 1):
        return None
    flat = value.flatten()
    return flat.expand(channels).clone() if flat.numel() in (1, channels) else None
