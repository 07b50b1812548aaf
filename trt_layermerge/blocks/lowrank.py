"""Encoder and decoder in a convolution's place, with a fit of both at once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from trt_layermerge.blocks.algebra import Kernel, compose
from trt_layermerge.blocks.chain import ConvChain
from trt_layermerge.blocks.factors import Owns, regress
from trt_layermerge.blocks.relaxed import Gather
from trt_layermerge.core import conv

RIDGE = 1e-6


class LowRankChain(ConvChain):
    """Two convolutions; ``rank`` fits both to values, ``rank-variance`` matches these' variance."""

    fits = ("rank", "rank-variance")

    @property
    def unknowns(self) -> int:
        """Weights of one output channel of the dense convolution that both amount to."""
        whole = self.whole
        return whole.in_channels * whole.kernel[0] * whole.kernel[1]

    @property
    def whole(self) -> conv.ConvSpec:
        """Geometry of the dense convolution."""
        return conv.compose(*self.candidate.convs)

    def fit(self, method: str, gather: Gather) -> None:
        """Installs the reduced-rank regression of the target on what the dense convolution sees."""
        encoder, decoder = self.bodies()
        dense = ConvChain(replace(self.candidate, convs=(self.whole,)), encoder.conv.weight).eval()
        moments = gather(dense, dense.last)
        cov, cross = (part[0] for part in moments.system())
        mean_x, mean_y = moments.x[0] / moments.count, moments.y[0] / moments.count
        groups, owns = encoder.conv.groups, owned(decoder.conv.weight)
        rank = encoder.conv.out_channels // groups
        first, last = regress(cov, cross, dense.last.conv.weight, owns, groups, rank, RIDGE)
        product = _dense(first, last, groups).flatten(1)
        variance = ((product @ cov) * product).sum(1).clamp_min(0)
        if method == "rank-variance":
            spread = (moments.yy[0] / moments.count - mean_y.square()).clamp_min(0)
            known = variance > 1e-12 * spread
            scale = torch.where(known, spread / torch.where(known, variance, 1.0), 1.0).sqrt()
            last, product = last * scale.reshape(-1, 1, 1, 1), product * scale.unsqueeze(1)
            variance = variance * scale.square()
        mean = product @ mean_x
        encoder.conv.weight.copy_(first)
        decoder.install(last, mean_y - mean, mean, variance)


def owned(decoder: Tensor) -> Owns:
    """Returns which taps the encoder owns, by the weights of its decoder; a single one it does."""
    return decoder.shape[2] == 1, decoder.shape[3] == 1


def _dense(encoder: Tensor, decoder: Tensor, groups: int) -> Tensor:
    """Returns the weights that the two amount to, where nothing steps or is dilated."""
    first = Kernel(encoder, encoder.new_zeros(len(encoder)), groups=groups)
    return compose(first, Kernel(decoder, decoder.new_zeros(len(decoder)))).weight
