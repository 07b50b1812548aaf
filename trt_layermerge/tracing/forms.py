"""Convolutions that are computed in another way than ``nn.Conv2d`` does, or more cheaply.

Each tells by the attributes of an ``nn.Conv2d`` which convolution it is; ``weight_of`` returns that
convolution's weight. So a network keeps its own operations until one of them is merged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_layermerge.core.conv import Pads, Pair


class PaddedConv2d(nn.Conv2d):
    """A convolution with as many zeros on each side as it likes, which ``nn.Conv2d`` cannot have.

    Made in place, by ``pad_with``.
    """

    pads: Pads

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to the filtered map."""
        top, left, bottom, right = self.pads
        padded = functional.pad(input, (left, right, top, bottom))
        return super().forward(padded)


def pad_with(conv: nn.Conv2d, pads: Pads) -> None:
    """Gives a plain or a padded convolution other zeros, (top, left, bottom, right), in place."""
    top, left, bottom, right = pads
    if top == bottom and left == right:
        conv.__class__, conv.padding = nn.Conv2d, (top, left)
        return
    conv.__class__, conv.padding = PaddedConv2d, (0, 0)
    assert isinstance(conv, PaddedConv2d)
    conv.pads = pads


class PooledConv2d(nn.Conv2d):
    """Average pooling and the unpadded convolution behind it, which together are one convolution.

    Weight and bias are the second one's. Made in place, by ``pool_first``.
    """

    pool: Pair
    pool_stride: Pair
    pool_padding: Pair

    def pool_first(self, pool: nn.Conv2d) -> None:
        """Takes over the geometry of an ``AveragingConv2d``."""
        self.pool, self.pool_stride = _pair(pool.kernel_size), _pair(pool.stride)
        self.pool_padding = _pair(pool.padding)

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to the filtered map."""
        pooled = functional.avg_pool2d(input, self.pool, self.pool_stride, self.pool_padding)
        return super().forward(pooled)


class ScalingConv2d(nn.Conv2d):
    """A depthwise convolution of one tap: y = x·w + b per channel, computed as such.

    Args:
        scale: w, ``(C,)``.
        shift: b, ``(C,)``, or None for none.
        trained: Whether training changes them.
    """

    def __init__(self, scale: Tensor, shift: Tensor | None, trained: bool) -> None:
        channels = scale.numel()
        super().__init__(
            channels, channels, 1, groups=channels, bias=shift is not None, device="meta"
        )
        self.weight = nn.Parameter(scale.reshape(-1, 1, 1, 1).clone(), trained)
        if shift is not None:
            self.bias = nn.Parameter(shift.clone(), trained)

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to a map of that shape."""
        scaled = input * self.weight.reshape(1, -1, 1, 1)
        return scaled if self.bias is None else scaled + self.bias.reshape(1, -1, 1, 1)


class FixedConv2d(nn.Conv2d):
    """A depthwise convolution whose taps are all one constant, which nothing trains.

    Args:
        channels: Channels of the map.
        value: The constant.
        like: A tensor whose type and device the taps get.
        kernel: Taps as (height, width).
        stride: Step as (vertical, horizontal).
        padding: Zeros on both sides as (vertical, horizontal).
    """

    def __init__(
        self,
        channels: int,
        value: float,
        like: Tensor,
        kernel: Pair = (1, 1),
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
    ) -> None:
        super().__init__(
            channels, channels, kernel, stride, padding, groups=channels, bias=False, device="meta"
        )
        taps = torch.full(self.weight.shape, value, dtype=like.dtype, device=like.device)
        del self.weight
        self.register_buffer("weight", taps, persistent=False)

    def reset_parameters(self) -> None:
        """Leaves the taps as they are."""


class AveragingConv2d(FixedConv2d):
    """Average pooling that counts padded zeros: every tap is one over their number."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to the averaged map."""
        kernel, stride = _pair(self.kernel_size), _pair(self.stride)
        return functional.avg_pool2d(input, kernel, stride, _pair(self.padding))


class PassingConv2d(FixedConv2d):
    """The identity, as one tap of one on every channel."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns its input."""
        return input


FORMS = (PaddedConv2d, PooledConv2d, ScalingConv2d, AveragingConv2d, PassingConv2d)


def weight_of(conv: nn.Conv2d) -> Tensor:
    """Returns the weight of the convolution that a module computes, in its own type.

    ``(C_out, C_in / groups, kh, kw)``. Behind average pooling over kh × kw positions, a convolution
    of one tap has W'[o, c, i, j] = W[o, c] / (kh·kw); its other taps lie apart.
    """
    if not isinstance(conv, PooledConv2d):
        return conv.weight
    rows, columns = conv.pool
    return conv.weight.expand(-1, -1, rows, columns) / (rows * columns)


def _pair(value: tuple[int, ...] | str) -> Pair:
    """Returns a pair that torch knows as a tuple of any length."""
    assert not isinstance(value, str)
    return value[0], value[1]
