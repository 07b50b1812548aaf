"""Channels that several layers read: each step takes the one that all of them miss least."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trt_layermerge.blocks.elimination import Readers, eliminate, eliminate_together

CHANNELS = 6


def problem(taps: int, outputs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns correlated inputs ``(M, C · taps)`` and outputs that depend on all of them."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(CHANNELS * taps, CHANNELS * taps, generator=generator, dtype=torch.float64)
    x = torch.randn(400, CHANNELS * taps, generator=generator, dtype=torch.float64) @ mix
    y = x @ torch.randn(CHANNELS * taps, outputs, generator=generator, dtype=torch.float64)
    return x, y + torch.randn(400, outputs, generator=generator, dtype=torch.float64)


def error(x: Tensor, y: Tensor, kept: list[int], taps: int) -> float:
    """Returns the squared error of the least-squares fit on some channels, solved anew."""
    columns = [c * taps + t for c in kept for t in range(taps)]
    part = x[:, columns]
    return float((y - part @ torch.linalg.lstsq(part, y).solution).square().sum())


@pytest.mark.parametrize("seed", range(5))
def test_each_step_is_the_best_of_all(seed: int) -> None:
    layers = [(1, *problem(1, 3, seed)), (2, *problem(2, 5, seed + 100))]
    kept, expected = list(range(CHANNELS)), []
    while len(kept) > 2:
        options = [[c for c in kept if c != gone] for gone in kept]
        kept = min(options, key=lambda some: sum(error(x, y, some, t) for t, x, y in layers))
        expected.append(kept)
    readers = [Readers(x.mT @ x, x.mT @ y, t) for t, x, y in layers]
    found = eliminate_together(readers, CHANNELS, [5, 4, 3, 2], share=1000)
    assert [left.tolist() for left in found] == expected


def test_one_reader_alone_is_the_plain_elimination() -> None:
    x, y = problem(2, 4, 0)
    (left,) = eliminate_together([Readers(x.mT @ x, x.mT @ y, 2)], CHANNELS, [3])
    assert left.tolist() == eliminate(x.mT @ x, x.mT @ y, 3, 2).tolist()
