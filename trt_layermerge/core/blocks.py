"""Which runs of units may become one block.

A block lies inside one residual branch or contains whole residual blocks; it never overlaps a
skip connection in part. A start strictly inside a residual therefore cannot grow past its end, and
an end that reaches the source of a skip jumps to its target (LayerMerge, ICML 2024, section 3).

``paper`` adds the limits of the published experiments, stated without architecture names: the stem
and a pointwise convolution that feeds the global pooling stay outside, and blocks end after a
strided convolution, or after the pointwise one that follows it where it is depthwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from trt_layermerge.core.unit import Block, ConvUnit, Residual, Rules, Segment


class Chain(Protocol):
    """What the rules look at of a ``LayerGraph``."""

    @property
    def units(self) -> tuple[ConvUnit, ...]:
        """Units in the order of execution."""
        ...

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Runs of units between barriers."""
        ...

    @property
    def residuals(self) -> tuple[Residual, ...]:
        """Residual additions."""
        ...

    @property
    def head_pointwise(self) -> int | None:
        """Index of a pointwise unit that feeds the global pooling, or None."""
        ...


def enumerate_blocks(graph: Chain, rules: Rules) -> tuple[Block, ...]:
    """Returns every block that the rules allow, ordered by start, then end."""
    runs = _paper_runs(graph) if rules == "paper" else [(s.start, s.end) for s in graph.segments]
    return tuple(
        Block(start, end)
        for first, last in runs
        for start in range(first, last)
        for end in _ends(graph, start, last)
    )


def _ends(graph: Chain, start: int, limit: int) -> Iterator[int]:
    """Yields every end that a block from ``start`` may have, up to ``limit``."""
    around = [r.end for r in graph.residuals if r.start < start < r.end]
    limit = min([limit, *around])
    end = start + 1
    while end <= limit:
        yield end
        # Past an end at which a skip begins, the block must swallow that residual whole.
        begun = [r.end for r in graph.residuals if r.start == end]
        end = max(begun, default=end + 1)


def _paper_runs(graph: Chain) -> list[tuple[int, int]]:
    """Returns the stretches between the breaks of the published experiments."""
    runs: list[tuple[int, int]] = []
    for segment in graph.segments:
        start = segment.start
        for unit in graph.units[segment.start : segment.end]:
            if _outside(graph, unit):
                if start < unit.index:
                    runs.append((start, unit.index))
                start = unit.index + 1
            elif _breaks_after(graph, unit, segment.end):
                runs.append((start, unit.index + 1))
                start = unit.index + 1
        if start < segment.end:
            runs.append((start, segment.end))
    return runs


def _outside(graph: Chain, unit: ConvUnit) -> bool:
    """Whether the published experiments leave the unit alone: the stem, and the head."""
    return unit.index in (0, graph.head_pointwise)


def _breaks_after(graph: Chain, unit: ConvUnit, end: int) -> bool:
    """Whether a run ends with this unit because of a stride."""

    def strided(u: ConvUnit) -> bool:
        return u.spec.stride != (1, 1)

    if strided(unit):
        follower = unit.index + 1
        return not (unit.spec.depthwise and follower < end and graph.units[follower].spec.pointwise)
    previous = graph.units[unit.index - 1] if unit.index else None
    return (
        unit.spec.pointwise
        and previous is not None
        and strided(previous)
        and previous.spec.depthwise
    )
