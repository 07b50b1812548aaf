"""Intervals of accuracies whose images come in groups, and rank correlations of repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from trt_layermerge.measure.fit import rank_correlation

Floats = NDArray[np.float64]

SAMPLES, SEED = 4000, 0
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with the bounds between which 95 % of its bootstrap replicates lie."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether zero is outside the bounds."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Grouped:
    """Test images in groups, such as all of one font, which stand or fall together.

    Attributes:
        groups: Group of every image, ``(N,)``.
        samples: Bootstrap replicates.
        seed: Seed of the replicates; the same for all, so that differences are paired.
    """

    groups: NDArray[np.int64]
    samples: int = SAMPLES
    seed: int = SEED

    def accuracy(self, hits: NDArray[np.bool_]) -> Interval:
        """Returns the accuracy of some trainings of one arm; ``hits`` is ``(seeds, N)``."""
        return _interval(float(hits.mean()), self._replicates(hits, 0))

    def difference(self, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Interval:
        """Returns how much more accurate the first is, on the same images.

        Groups are drawn alike for both, the seeds of each for itself.
        """
        replicates = self._replicates(first, 0) - self._replicates(second, 1)
        return _interval(float(first.mean() - second.mean()), replicates)

    def _replicates(self, hits: NDArray[np.bool_], arm: int) -> Floats:
        """Returns the accuracy in each replicate: groups and seeds drawn with replacement.

        A replicate in which group g is drawn w_g times has accuracy Σ w_g hits_g / Σ w_g n_g.
        """
        found, place = np.unique(self.groups, return_inverse=True)
        counts = np.bincount(place, minlength=len(found)).astype(float)
        sums = np.stack([np.bincount(place, row, len(found)) for row in hits.astype(float)])
        weights = _draws(len(found), self.samples, self.seed)
        seeds = _draws(len(hits), self.samples, self.seed + 1 + arm) / len(hits)
        drawn: Floats = np.einsum("bs,sg,bg->b", seeds, sums, weights, optimize=True)
        shares: Floats = drawn / (weights @ counts)
        return shares


def _draws(count: int, samples: int, seed: int) -> Floats:
    """Returns how often each of ``count`` things is drawn, ``(samples, count)``."""
    shares = np.full(count, 1 / count)
    return np.random.default_rng(seed).multinomial(count, shares, samples).astype(float)


def _interval(mean: float, replicates: Floats) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def agreement(repeats: Sequence[Sequence[float]]) -> list[float]:
    """Returns Spearman's rank correlation of every pair of repeats of the same measure."""
    return [rank_correlation(a, b) for a, b in combinations(repeats, 2)]


def across(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> list[float]:
    """Returns Spearman's rank correlation of every repeat of one measure with every other's."""
    return [rank_correlation(a, b) for a in first for b in second]
