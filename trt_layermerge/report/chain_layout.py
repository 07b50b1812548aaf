"""Where everything stands in the picture of the chain: pure arithmetic, no drawing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Block, Residual

COLUMNS = 15
CUT_PENALTY = 12


@dataclass(frozen=True, slots=True)
class Row:
    """Units ``start`` to ``end`` (half open) stand side by side."""

    start: int
    end: int


def wrap_rows(graph: LayerGraph, plan: MergePlan, columns: int = COLUMNS) -> tuple[Row, ...]:
    """Returns rows of at most ``columns`` units that tear neither a block nor, if possible, a skip.

    Like the lines of a paragraph: the squares of the free places plus a penalty for every residual
    that crosses a row's end are minimal over all rows. A block that is longer than a row gets a
    row of its own length.
    """
    ends = [c.block.end for c in plan.candidates]
    columns = max([columns, *(len(c.block) for c in plan.candidates)])
    rows_needed = math.ceil(len(graph.units) / columns)
    ideal = len(graph.units) / max(1, rows_needed)
    best: dict[int, tuple[float, int]] = {0: (0.0, 0)}
    for end in ends:
        torn = sum(r.start < end < r.end for r in graph.residuals)
        best[end] = min(
            (best[start][0] + (ideal - (end - start)) ** 2 + CUT_PENALTY * torn, start)
            for start in best
            if end - start <= columns
        )
    rows: list[Row] = []
    end = len(graph.units)
    while end:
        start = best[end][1]
        rows.append(Row(start, end))
        end = start
    return tuple(reversed(rows))


def surviving_residuals(graph: LayerGraph, plan: MergePlan) -> tuple[Residual, ...]:
    """Returns the residuals that no block of the plan swallows whole."""

    def swallowed(residual: Residual, block: Block) -> bool:
        return block.start <= residual.start and residual.end <= block.end

    return tuple(r for r in graph.residuals if not any(swallowed(r, c.block) for c in plan.changed))


def nesting(graph: LayerGraph, residual: Residual) -> int:
    """Returns how many residuals lie inside another one, two at the most."""
    inside = graph.residuals_inside(residual.start, residual.end)
    return min(2, len(inside) - 1)


@dataclass(frozen=True, slots=True)
class Fate:
    """What the plan does with one unit.

    Attributes:
        conv: ``untouched``, ``merged`` (kept inside a composition), ``dropped`` or ``refitted``.
        activation: Whether an activation stays behind the unit.
    """

    conv: str
    activation: bool


def fates(graph: LayerGraph, plan: MergePlan) -> tuple[Fate, ...]:
    """Returns what becomes of every unit, in order."""
    return tuple(
        _fate(candidate, index)
        for candidate in plan.candidates
        for index in range(candidate.block.start, candidate.block.end)
    )


def _fate(candidate: Candidate, index: int) -> Fate:
    last = index == candidate.block.end - 1
    activation = last and candidate.activation is not None
    if candidate.original:
        return Fate("untouched", activation)
    if candidate.kind == "fit":
        return Fate("refitted", activation)
    return Fate("merged" if index in candidate.kept else "dropped", activation)


def box_height(channels: int) -> float:
    """Returns the height of a box: a step for every doubling of the channels."""
    return min(64.0, max(30.0, 30 + 5.5 * math.log2(max(1, channels) / 16)))


def map_runs(graph: LayerGraph, row: Row) -> tuple[tuple[int, int, tuple[int, int]], ...]:
    """Returns the runs ``(start, end, (rows, columns))`` of one output map size within a row."""
    runs: list[tuple[int, int, tuple[int, int]]] = []
    for unit in graph.units[row.start : row.end]:
        size = unit.spec.out_size
        if runs and runs[-1][2] == size:
            runs[-1] = (runs[-1][0], unit.index + 1, size)
        else:
            runs.append((unit.index, unit.index + 1, size))
    return tuple(runs)
