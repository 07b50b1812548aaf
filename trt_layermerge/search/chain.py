"""The exact dynamic programme: every non-dominated way to cover a chain with options.

    F[0] = {(0, 0)}
    F[j] = nondominated( union over options (i, j] of  F[i] + (latency, score) )

A point is dominated when another is no slower and scores no less. No time is rounded, so no
solution overshoots its budget and none is lost; ``F[L]`` answers every budget at once
(LayerMerge, ICML 2024, algorithm 1, solves the same problem on a grid of 0.1 ms ticks). Where the
worst score counts, and not their sum, it is exact likewise: the lower of two in place of ``+``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_layermerge.errors import InfeasibleBudgetError, UsageError

_Floats = NDArray[np.float64]
_Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Option:
    """One way to cover positions ``start`` to ``end`` (half open) of a chain."""

    start: int
    end: int
    latency_ms: float
    score: float
    payload: Any = None


@dataclass(frozen=True, slots=True)
class Solution:
    """Options that cover the whole chain, in order, with their summed latency and score."""

    options: tuple[Option, ...]
    latency_ms: float
    score: float


@dataclass(frozen=True, slots=True)
class _Points:
    """Non-dominated points at one position, by rising latency and score."""

    latency_ms: _Floats
    score: _Floats
    option: _Indices
    previous: _Indices


@dataclass(frozen=True)
class Frontier:
    """Every non-dominated (latency_ms, score) of a chain, by rising latency."""

    _options: Sequence[Option]
    _points: Sequence[_Points]

    @property
    def latency_ms(self) -> _Floats:
        """Latencies in ms, rising."""
        return self._points[-1].latency_ms

    @property
    def score(self) -> _Floats:
        """Scores, rising."""
        return self._points[-1].score

    def __len__(self) -> int:
        return len(self.latency_ms)

    def __iter__(self) -> Iterator[tuple[float, float]]:
        return zip(self.latency_ms.tolist(), self.score.tolist(), strict=True)

    def solution(self, index: int) -> Solution:
        """Returns the options behind one point."""
        position, row, chosen = len(self._points) - 1, index, []
        while position:
            points = self._points[position]
            option = self._options[points.option[row]]
            row = int(points.previous[row])
            chosen.append(option)
            position = option.start
        last = self._points[-1]
        return Solution(
            tuple(reversed(chosen)), float(last.latency_ms[index]), float(last.score[index])
        )

    def within(self, budget_ms: float) -> Solution:
        """Returns the best solution that is not slower than the budget.

        Raises:
            InfeasibleBudgetError: If even the fastest is slower.
        """
        affordable = int(np.searchsorted(self.latency_ms, budget_ms, side="right"))
        if not affordable:
            raise InfeasibleBudgetError(
                f"budget {budget_ms:.4g} ms is below the fastest plan, "
                f"{float(self.latency_ms[0]):.4g} ms; raise the budget"
            )
        return self.solution(affordable - 1)


def chain_frontier(length: int, options: Sequence[Option], worst: bool = False) -> Frontier:
    """Returns every non-dominated (latency_ms, score) of covering ``length`` positions.

    Options with an infinite latency are left out. Exact for any float64 latencies and scores.

    Args:
        length: Number of positions.
        options: Ways to cover some of them.
        worst: Whether a cover scores what its worst option does, none above 0, and not their sum.

    Raises:
        UsageError: If an option lies outside the chain, is NaN, or no cover exists.
    """
    by_end: list[list[int]] = [[] for _ in range(length + 1)]
    for index, option in enumerate(options):
        _check(option, length)
        if math.isfinite(option.latency_ms) and math.isfinite(option.score):
            by_end[option.end].append(index)
    none = np.zeros(1, np.intp)
    points = [_Points(np.zeros(1), np.zeros(1), none, none)]
    for end in range(1, length + 1):
        points.append(_reach(options, by_end[end], points, worst))
    if not len(points[-1].latency_ms):
        raise UsageError(f"no options cover all {length} positions of the chain")
    return Frontier(options, points)


def solve_chain(length: int, options: Sequence[Option], budget_ms: float) -> Solution:
    """Returns the cover of highest score whose latency does not exceed the budget.

    Args:
        length: Number of positions.
        options: Ways to cover some of them.
        budget_ms: Largest sum of latencies.

    Raises:
        InfeasibleBudgetError: If every cover is slower.
        UsageError: If an option lies outside the chain, is NaN, or no cover exists.
    """
    return chain_frontier(length, options).within(budget_ms)


def _check(option: Option, length: int) -> None:
    if not 0 <= option.start < option.end <= length:
        raise UsageError(f"option {option.start}:{option.end} is not in a chain of {length}")
    if math.isnan(option.latency_ms) or math.isnan(option.score):
        raise UsageError(f"option {option.start}:{option.end} has a NaN latency or score")


def _reach(
    options: Sequence[Option], ending: list[int], points: list[_Points], worst: bool
) -> _Points:
    """Returns the non-dominated points of every option that ends here."""
    together = np.minimum if worst else np.add
    latency, score, option, previous = [], [], [], []
    for index in ending:
        before = points[options[index].start]
        if not len(before.score):  # nothing reaches its start
            continue
        latency.append(before.latency_ms + options[index].latency_ms)
        score.append(together(before.score, options[index].score))
        option.append(np.full(len(before.score), index))
        previous.append(np.arange(len(before.score)))
    if not latency:
        nothing = np.zeros(0, np.intp)
        return _Points(np.zeros(0), np.zeros(0), nothing, nothing)
    merged_latency, merged_score = np.concatenate(latency), np.concatenate(score)
    kept = _nondominated(merged_latency, merged_score)
    return _Points(
        merged_latency[kept],
        merged_score[kept],
        np.concatenate(option)[kept],
        np.concatenate(previous)[kept],
    )


def _nondominated(latency: _Floats, score: _Floats) -> _Indices:
    """Returns the indices of the non-dominated points, by rising latency."""
    order = np.argsort(latency, kind="stable")
    ordered = score[order]
    best = np.maximum.accumulate(ordered)
    rises = np.empty(len(order), bool)
    rises[0] = True
    np.greater(ordered[1:], best[:-1], out=rises[1:])
    order = order[rises]
    last_of_equal = np.append(np.diff(latency[order]) > 0, True)
    kept: _Indices = order[last_of_equal]
    return kept
