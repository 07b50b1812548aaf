"""The parts that relaxed blocks are made of, and the kernels they compute."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trt_layermerge.blocks.algebra import Kernel, bn_affine, fold_bn, scale_kernel
from trt_layermerge.core.conv import ConvSpec, Pads
from trt_layermerge.errors import UnsupportedModelError

NO_PADS: Pads = (0, 0, 0, 0)


class ConvNorm(nn.Module):
    """A convolution without padding and the batch normalisation behind it, if there is one."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C_in, H, W)`` to ``(N, C_out, H', W')``."""
        y: Tensor = self.conv(x)
        return y if self.norm is None else self.norm(y)

    @torch.no_grad()
    def install(self, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Becomes a convolution in place; in eval mode it computes exactly that.

        The normalisation gets the output's own mean and variance as statistics, and scale
        √(σ² + ε) and shift μ + b that undo them.

        Args:
            weight: As the convolution's own.
            bias: ``(C_out,)``.
            mean: Mean of the output without the bias, per channel.
            variance: Variance of the output, per channel.
        """
        conv, norm = self.conv, self.norm
        conv.weight.copy_(weight)
        if norm is None:
            assert conv.bias is not None  # conv_norm gives one
            conv.bias.copy_(bias)
            return
        if conv.bias is not None:
            conv.bias.zero_()
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean + bias)


@dataclass(frozen=True, slots=True)
class Start:
    """What a convolution starts with.

    Attributes:
        weight: ``(C_out, C_in / groups, kh, kw)``; float64 is cast once.
        bias: ``(C_out,)``, or None.
        norm: The batch normalisation behind it, which is copied with its statistics; None for none.
    """

    weight: Tensor
    bias: Tensor | None = None
    norm: nn.Module | None = None


def conv_norm(spec: ConvSpec, start: Start, like: Tensor) -> ConvNorm:
    """Returns a trainable convolution without padding, and its normalisation.

    One with neither bias nor normalisation gets a bias of zero, which repair and training can use.

    Args:
        spec: Its geometry.
        start: What it starts with; copied.
        like: A tensor whose type and device it gets.

    Raises:
        ValueError: If the weights have another shape.
        UnsupportedModelError: If the normalisation keeps no running statistics.
    """
    conv = unpadded_conv(spec, start.bias is not None or start.norm is None, like)
    if start.weight.shape != conv.weight.shape:
        shapes = tuple(start.weight.shape), tuple(conv.weight.shape)
        raise ValueError(f"start weights of shape {shapes[0]} do not fit {spec}: {shapes[1]}")
    with torch.no_grad():
        conv.weight.copy_(start.weight)
        if conv.bias is not None:
            conv.bias.zero_() if start.bias is None else conv.bias.copy_(start.bias)
    return ConvNorm(conv, None if start.norm is None else norm_copy(start.norm))


def unpadded_conv(spec: ConvSpec, bias: bool, like: Tensor) -> nn.Conv2d:
    """Returns a convolution of this geometry without padding; type and device are those of like.

    Args:
        spec: The geometry; its padding is ignored.
        bias: Whether there is a bias.
        like: A tensor whose type and device it gets.
    """
    return nn.Conv2d(
        spec.in_channels,
        spec.out_channels,
        spec.kernel,
        spec.stride,
        0,
        spec.dilation,
        spec.groups,
        bias,
        device=like.device,
        dtype=like.dtype,
    )


def norm_copy(norm: nn.Module) -> nn.BatchNorm2d:
    """Returns a trainable, affine copy of a batch normalisation.

    Raises:
        UnsupportedModelError: If it keeps no running statistics.
    """
    assert isinstance(norm, _BatchNorm)
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise UnsupportedModelError(
            "a batch normalisation keeps no running statistics, so it is not linear in eval mode "
            "and cannot merge; train it with track_running_stats=True"
        )
    copy = nn.BatchNorm2d(
        norm.num_features, norm.eps, norm.momentum, device=mean.device, dtype=mean.dtype
    )
    copy.load_state_dict(norm.state_dict(), strict=False)
    return copy


def identity_norm(channels: int, like: Tensor) -> nn.BatchNorm2d:
    """Returns a batch normalisation that changes nothing in eval mode at the start."""
    norm = nn.BatchNorm2d(channels, device=like.device, dtype=like.dtype)
    nn.init.constant_(norm.weight, (1.0 + norm.eps) ** 0.5)
    return norm


def zero_pad(padding: Pads) -> nn.Module:
    """Returns the padding (top, left, bottom, right) as a module."""
    top, left, bottom, right = padding
    return nn.Identity() if padding == NO_PADS else nn.ZeroPad2d((left, right, top, bottom))


def kernel_of(module: ConvNorm | nn.BatchNorm2d) -> Kernel:
    """Returns what a part computes in eval mode, as a kernel in float64."""
    if isinstance(module, nn.BatchNorm2d):
        return scale_kernel(*bn_affine(*statistics(module)))
    conv, norm = module.conv, module.norm
    if norm is not None:
        weight, bias = fold_bn(conv.weight.detach(), detached(conv.bias), *statistics(norm))
    else:
        assert conv.bias is not None
        weight, bias = conv.weight.detach().double(), conv.bias.detach().double()
    stride, dilation = (conv.stride[0], conv.stride[1]), (conv.dilation[0], conv.dilation[1])
    return Kernel(weight, bias, stride, dilation, conv.groups)


def statistics(
    norm: _BatchNorm,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, float]:
    """Returns mean, variance, scale, shift and eps of a batch normalisation."""
    assert norm.running_mean is not None and norm.running_var is not None
    return (
        norm.running_mean,
        norm.running_var,
        detached(norm.weight),
        detached(norm.bias),
        norm.eps,
    )


def conv_of(kernel: Kernel, padding: Pads, like: Tensor) -> nn.Module:
    """Returns a kernel as a plain biased convolution, cast once to the type and device of like.

    Uneven padding becomes a ``ZeroPad2d`` before it.

    Args:
        kernel: Weights and bias; copied.
        padding: Zeros as (top, left, bottom, right).
        like: A tensor whose type and device it gets.
    """
    top, left, bottom, right = padding
    even = top == bottom and left == right
    conv = nn.Conv2d(
        kernel.in_channels,
        kernel.out_channels,
        kernel.taps,
        kernel.stride,
        (top, left) if even else 0,
        kernel.dilation,
        kernel.groups,
        device=like.device,
        dtype=like.dtype,
    )
    with torch.no_grad():
        conv.weight.copy_(kernel.weight)
        assert conv.bias is not None
        conv.bias.copy_(kernel.bias)
    if even:
        return conv
    return nn.Sequential(OrderedDict(pad=zero_pad(padding), conv=conv))


def detached(tensor: Tensor | None) -> Tensor | None:
    """Returns the values of a tensor without its history, or None for None."""
    return None if tensor is None else tensor.detach()
