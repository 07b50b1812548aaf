"""Convolution modules: their geometry on a known map, or why they cannot be a unit."""

from __future__ import annotations

import math
from typing import TypeGuard

from torch import nn
from torch.nn.utils import parametrize

from trt_layermerge.core.conv import ConvSpec, Pads
from trt_layermerge.tracing.forms import FORMS, FixedConv2d, PaddedConv2d, PooledConv2d
from trt_layermerge.tracing.prepare import has_hooks, runs_forward_of

ANY_MAP = (1, 1, 1, 1)

_KINDS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def is_conv(module: nn.Module) -> TypeGuard[nn.Module]:
    """Whether a module is a convolution of any kind, subclasses included."""
    return isinstance(module, _KINDS)


def is_plain_conv(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module computes what its weights say, so that others may be folded into them."""
    fixed = isinstance(module, FixedConv2d)
    return isinstance(module, nn.Conv2d) and not fixed and conv_refusal(module, ANY_MAP) is None


def conv_refusal(module: nn.Module, in_shape: tuple[int, ...]) -> str | None:
    """Returns why a convolution cannot be a unit, or None if it can.

    Args:
        module: A convolution of any kind.
        in_shape: Shape of its input in the traced run.
    """
    name = type(module).__name__
    if not isinstance(module, nn.Conv2d):
        return f"{name} is not a two-dimensional convolution, the only kind that merges"
    if parametrize.is_parametrized(module):
        return (
            "its weight is computed anew in every call (a parametrisation); make it permanent with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    if has_hooks(module):
        return (
            "it has forward hooks (weight_norm, pruning or your own), which may change its weight "
            "or its values; remove them before tracing"
        )
    if not (_is_plain(module) or _is_dynamic_same(module) or _is_form(module)):
        return f"{name} computes more than a plain convolution (its forward is its own)"
    if module.padding_mode != "zeros":
        return f"it pads with padding_mode={module.padding_mode!r}; only zeros can be merged"
    if len(in_shape) != 4:
        return f"its input has the shape {in_shape}, not (N, C, H, W)"
    return None


def conv_spec(module: nn.Conv2d, in_shape: tuple[int, ...]) -> ConvSpec:
    """Returns the bare geometry of a convolution without a refusal, on this input."""
    height, width = in_shape[2:]
    kernel_h, kernel_w = module.kernel_size
    stride_h, stride_w = module.stride
    dilation_h, dilation_w = module.dilation
    if isinstance(module, PooledConv2d):
        kernel_h, kernel_w = module.pool
        stride_h, stride_w = stride_h * module.pool_stride[0], stride_w * module.pool_stride[1]
    return ConvSpec(
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel=(kernel_h, kernel_w),
        stride=(stride_h, stride_w),
        padding=_padding(module, height, width),
        dilation=(dilation_h, dilation_w),
        groups=module.groups,
        height=height,
        width=width,
    )


def _padding(module: nn.Conv2d, height: int, width: int) -> Pads:
    """Returns the zeros around the map as (top, left, bottom, right)."""
    if _is_dynamic_same(module):
        total = [
            max((math.ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
            for size, kernel, stride, dilation in zip(
                (height, width), module.kernel_size, module.stride, module.dilation, strict=True
            )
        ]
    elif isinstance(module, PaddedConv2d):
        return module.pads
    elif isinstance(module, PooledConv2d):
        return (*module.pool_padding, *module.pool_padding)
    elif module.padding == "same":
        spans = zip(module.dilation, module.kernel_size, strict=True)
        total = [dilation * (kernel - 1) for dilation, kernel in spans]
    elif isinstance(module.padding, str):  # "valid"
        total = [0, 0]
    else:
        total = [2 * int(p) for p in module.padding]
    top, left = total[0] // 2, total[1] // 2
    return top, left, total[0] - top, total[1] - left


def _is_plain(module: nn.Module) -> bool:
    """Whether calling a module does nothing but the convolution that it describes."""
    return (
        runs_forward_of(module, nn.Conv2d.forward)
        and getattr(type(module), "_conv_forward", None) is nn.Conv2d._conv_forward
    )


def _is_form(module: nn.Module) -> bool:
    return type(module) in FORMS and runs_forward_of(module, type(module).forward)


def _is_dynamic_same(module: nn.Module) -> bool:
    """Whether a module is timm's convolution whose padding follows the size of its input.

    Its total padding per axis is max((⌈size / stride⌉ − 1)·stride + extent − size, 0), the odd
    pixel at the bottom and at the right, as TensorFlow's "SAME".
    """
    kind = type(module)
    return (
        kind.__name__ == "Conv2dSame"
        and kind.__module__.startswith("timm.")
        and "forward" not in vars(module)
    )
