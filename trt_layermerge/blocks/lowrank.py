"""Encoder and decoder in a convolution's place, with a fit of both at once."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from trt_layermerge.blocks.algebra import Kernel, bn_affine, compose
from trt_layermerge.blocks.chain import ConvChain
from trt_layermerge.blocks.factors import decode, encode
from trt_layermerge.blocks.layers import ConvNorm, statistics
from trt_layermerge.blocks.relaxed import Gather
from trt_layermerge.core import conv

RIDGE = 1e-6

FLAT = 10.0
"""How far the covariance is flattened where directions are chosen (``factors.encode``): for most
units of a ResNet-20, 0 loses less of the values, and up to a fifth more of the answers."""


class LowRankChain(ConvChain):
    """Two convolutions; ``rank`` fits both to the values of the block."""

    fits = ("rank",)

    @property
    def whole(self) -> conv.ConvSpec:
        """Geometry of the dense convolution that they amount to."""
        return conv.compose(*self.candidate.convs)

    @property
    def unknowns(self) -> int:
        """Weights of one output channel of that convolution."""
        return self.whole.in_channels * self.whole.kernel[0] * self.whole.kernel[1]

    def fit(self, method: str, gather: Gather) -> None:
        """Installs the encoder that keeps most of the target, and the decoder fitted to it.

        Channels count by the weights before their normalisation, which says nothing of how much
        the network needs them, and each gets the variance of its target, as by ``ls-variance``.
        """
        encoder, decoder = self.bodies()
        groups, owns = encoder.conv.groups, tuple(n == 1 for n in decoder.conv.kernel_size)
        dense = ConvChain(replace(self.candidate, convs=(self.whole,)), encoder.conv.weight).eval()
        moments = gather(dense, dense.last, key=self.whole)
        cov, cross = (part[0] for part in moments.system())
        mean_x, mean_y = moments.x[0] / moments.count, moments.y[0] / moments.count
        kernel = moments.solve(RIDGE).weight
        rank = encoder.conv.out_channels // groups
        start = encode(kernel / _scale(decoder), cov, (owns[0], owns[1]), groups, rank, FLAT)
        first, last = decode(start, cov, cross, kernel, groups, RIDGE)
        product = _dense(first, last, groups).flatten(1)
        variance = ((product @ cov) * product).sum(1)
        wanted = moments.yy[0] / moments.count - mean_y.square()
        known = (variance > 1e-12 * wanted) & (wanted > 0)
        scale = (wanted / variance).where(known, 1.0).sqrt()
        last, mean = last * scale.reshape(-1, 1, 1, 1), scale * (product @ mean_x)
        encoder.conv.weight.copy_(first)
        decoder.install(last, mean_y - mean, mean, scale.square() * variance.clamp_min(0))


def _scale(decoder: ConvNorm) -> Tensor:
    """Returns what the normalisation multiplies each channel by, ``(f, 1, 1, 1)``, in size."""
    if decoder.norm is None:
        return decoder.conv.weight.new_ones(1)
    scale, _ = bn_affine(*statistics(decoder.norm))
    return scale.abs().clamp_min(1e-6 * float(scale.abs().max()) or 1.0).reshape(-1, 1, 1, 1)


def _dense(encoder: Tensor, decoder: Tensor, groups: int) -> Tensor:
    """Returns the weights that the two amount to, where nothing steps or is dilated."""
    first = Kernel(encoder, encoder.new_zeros(len(encoder)), groups=groups)
    return compose(first, Kernel(decoder, decoder.new_zeros(len(decoder)))).weight
