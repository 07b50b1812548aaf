"""Which inputs of a convolution to keep: backward elimination under least squares.

With H the values that reach a convolution, unfolded and centred, Y what it should put out, G = HᵀH
(damped) and R = HᵀY, the best weights are B = G⁻¹R. Leaving out a channel, the rows g of B, and
fitting the others anew raises the squared error by

    tr(B_gᵀ · ((G⁻¹)_gg)⁻¹ · B_g)

after which, with P = G⁻¹ and r the other rows, P_rr − P_rg · P_gg⁻¹ · P_gr and
B_r − P_rg · P_gg⁻¹ · B_g take the place of P and B. ThiNet (Luo et al., ICCV 2017) and He et al.
(ICCV 2017) choose channels by the same error.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-6
"""What is added to the diagonal of G, of its mean."""

SHARE = 8
"""One in so many of the channels that must still go goes at a time, and then all costs are anew: of
two that say the same either may go, but not both."""


def eliminate(gram: Tensor, cross: Tensor, keep: int, taps: int = 1, share: int = SHARE) -> Tensor:
    """Returns the channels that remain, rising; float64.

    Args:
        gram: G, ``(C · taps, C · taps)``: channels in order, the taps of each side by side.
        cross: R, ``(C · taps, C_out)``.
        keep: How many channels remain.
        taps: Values of each channel.
        share: One in so many of those that must go goes at a time; a large one means each alone.
    """
    damped = gram + RIDGE * gram.diagonal().mean().clamp_min(1e-30) * torch.eye(len(gram)).to(gram)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    weights = inverse @ cross
    left = torch.arange(len(gram) // taps, device=gram.device)
    while len(left) > keep:
        costs = _costs(inverse, weights, taps)
        goes = torch.zeros(len(left), dtype=torch.bool, device=gram.device)
        goes[costs.argsort()[: max(1, (len(left) - keep) // share)]] = True
        gone, stay = (mask.repeat_interleave(taps) for mask in (goes, ~goes))
        beside = inverse[stay][:, gone]
        pull = torch.linalg.solve(inverse[gone][:, gone], torch.cat([beside.mT, weights[gone]], 1))
        rest = beside @ pull
        inverse = inverse[stay][:, stay] - rest[:, : len(beside)]
        weights, left = weights[stay] - rest[:, len(beside) :], left[~goes]
    return left


def _costs(inverse: Tensor, weights: Tensor, taps: int) -> Tensor:
    """Returns by how much each channel's absence raises the squared error, ``(channels,)``."""
    count = len(inverse) // taps
    blocks = inverse.reshape(count, taps, count, taps).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    rows = weights.reshape(count, taps, -1)
    costs: Tensor = (rows * torch.linalg.solve(blocks, rows)).sum((1, 2))
    return costs
