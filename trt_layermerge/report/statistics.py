"""Intervals and errors that the pages quote."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Interval: TypeAlias = tuple[float, float]
Z95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""


@dataclass(frozen=True, slots=True)
class PredictionError:
    """How predicted latencies compare with measured ones, over several whole networks.

    Attributes:
        count: Number of networks.
        median: Median of ``|predicted / measured − 1|``.
        worst: Largest of the same.
        spearman: Rank correlation, or None below three networks.
    """

    count: int
    median: float
    worst: float
    spearman: float | None = None


def wilson_interval(share: float, count: int, z: float = Z95) -> Interval:
    """Returns the Wilson score interval of a binomial share (E. B. Wilson, 1927).

        centre = (p + z²/2n) / (1 + z²/n)
        half   = z/(1 + z²/n) · √(p(1 − p)/n + z²/4n²)

    Nothing counted, or a share that is not between 0 and 1, says nothing: (0, 1).
    """
    if count <= 0 or not 0 <= share <= 1:
        return 0.0, 1.0
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def difference_interval(
    first: float, first_count: int, second: float, second_count: int
) -> Interval:
    """Returns the 95 % interval of ``first − second`` (R. G. Newcombe, 1998, method 10).

    The samples count as independent. Two networks judged on the same images agree on most of
    them, so the true interval is narrower.
    """
    low_1, high_1 = wilson_interval(first, first_count)
    low_2, high_2 = wilson_interval(second, second_count)
    difference = first - second
    return (
        difference - math.hypot(first - low_1, high_2 - second),
        difference + math.hypot(high_1 - first, second - low_2),
    )


def prediction_error(
    predicted_ms: Sequence[float], measured_ms: Sequence[float]
) -> PredictionError | None:
    """Returns the error over pairs of latencies; pairs that are not finite are left out."""
    pairs = np.array([predicted_ms, measured_ms], dtype=np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0) & (pairs > 0).all(axis=0)]
    predicted, measured = pairs
    if not predicted.size:
        return None
    errors = np.abs(predicted / measured - 1)
    return PredictionError(
        count=int(predicted.size),
        median=float(np.median(errors)),
        worst=float(errors.max()),
        spearman=_spearman(predicted, measured),
    )


def _spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Returns the correlation of ranks, ties sharing their mean rank."""
    if first.size < 3:
        return None
    x, y = (ranks - ranks.mean() for ranks in (_ranks(first), _ranks(second)))
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale else None


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    below = (values[None, :] < values[:, None]).sum(axis=1)
    ties = (values[None, :] == values[:, None]).sum(axis=1)
    return np.asarray(below + (ties + 1) / 2, dtype=np.float64)
