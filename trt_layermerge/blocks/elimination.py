"""Which inputs of a convolution to keep: backward elimination under least squares.

With H the values that reach a convolution, unfolded and centred, Y what it should put out, G = HᵀH
(damped) and R = HᵀY, the best weights are B = G⁻¹R. Leaving out a channel, the rows g of B, and
fitting the others anew raises the squared error by

    tr(B_gᵀ · ((G⁻¹)_gg)⁻¹ · B_g)

after which, with P = G⁻¹ and r the other rows, P_rr − P_rg · P_gg⁻¹ · P_gr and
B_r − P_rg · P_gg⁻¹ · B_g take the place of P and B. Where several convolutions
read the same channels, their errors add up. ThiNet (Luo et al., ICCV 2017) and He et al.
(ICCV 2017) choose channels by the same error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

RIDGE = 1e-6
"""What is added to the diagonal of G, of its mean."""

SHARE = 8
"""One in so many of the channels that must still go goes at a time, and then all costs are anew: of
two that say the same either may go, but not both."""


class Readers:
    """The least-squares problem of one convolution or linear layer, from which channels go.

    Args:
        gram: G, ``(C · taps, C · taps)``: channels in order, the taps of each side by side.
        cross: R, ``(C · taps, C_out)``.
        taps: Values of each channel.
    """

    def __init__(self, gram: Tensor, cross: Tensor, taps: int) -> None:
        damping = RIDGE * gram.diagonal().mean().clamp_min(1e-30)
        damped = gram + damping * torch.eye(len(gram)).to(gram)
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        self._weights = self._inverse @ cross
        self._taps = taps

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._weights.device

    def costs(self) -> Tensor:
        """Returns by how much each channel's absence raises the squared error, ``(channels,)``."""
        taps, count = self._taps, len(self._inverse) // self._taps
        blocks = self._inverse.reshape(count, taps, count, taps)
        blocks = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        rows = self._weights.reshape(count, taps, -1)
        costs: Tensor = (rows * torch.linalg.solve(blocks, rows)).sum((1, 2))
        return costs

    def drop(self, goes: Tensor) -> None:
        """Takes channels out, ``(channels,)`` bool, and fits the others anew."""
        gone, stay = (mask.repeat_interleave(self._taps) for mask in (goes, ~goes))
        inverse, weights = self._inverse, self._weights
        beside = inverse[stay][:, gone]
        pull = torch.linalg.solve(inverse[gone][:, gone], torch.cat([beside.mT, weights[gone]], 1))
        rest = beside @ pull
        self._inverse = inverse[stay][:, stay] - rest[:, : len(beside)]
        self._weights = weights[stay] - rest[:, len(beside) :]


def eliminate(gram: Tensor, cross: Tensor, keep: int, taps: int = 1, share: int = SHARE) -> Tensor:
    """Returns the channels that remain, rising; float64.

    Args:
        gram: As of ``Readers``.
        cross: Likewise.
        keep: How many channels remain.
        taps: Values of each channel.
        share: One in so many of those that must go goes at a time; a large one means each alone.
    """
    (left,) = eliminate_together([Readers(gram, cross, taps)], len(gram) // taps, [keep], share)
    return left


def eliminate_together(
    readers: Sequence[Readers], channels: int, keeps: Sequence[int], share: int = SHARE
) -> Iterator[Tensor]:
    """Yields the channels that remain, rising, of those that several layers read.

    Args:
        readers: What is read, each error in a unit of its own; they are changed in place.
        channels: How many there are.
        keeps: How many remain, falling; fewer ones are among more.
        share: As of ``eliminate``.
    """
    left = torch.arange(channels, device=readers[0].device)
    for keep in keeps:
        while len(left) > keep:
            costs = torch.stack([reader.costs() for reader in readers]).sum(0)
            goes = torch.zeros(len(left), dtype=torch.bool, device=costs.device)
            goes[costs.argsort()[: max(1, (len(left) - keep) // share)]] = True
            for reader in readers:
                reader.drop(goes)
            left = left[~goes]
        yield left
