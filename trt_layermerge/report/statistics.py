"""Intervals and errors that the pages quote."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

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
