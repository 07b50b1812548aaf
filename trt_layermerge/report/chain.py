"""The chain of convolutions before and after, as one picture: blocks stand above what they became.

Every original unit has a column. The upper line shows it as it was, the lower line what runs in
its place; a merged convolution is as wide as the units that it replaces. Here is what is drawn;
where it stands is said in ``templates/chain.svg.j2``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from trt_layermerge.core.candidate import Candidate, open_residual
from trt_layermerge.core.conv import ConvSpec, PieceSpec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Branch, Residual
from trt_layermerge.report.data import Look
from trt_layermerge.report.palette import GREEN, RED, STONE
from trt_layermerge.report.templates import render

UNTOUCHED, DROPPED = Look("untouched", STONE), Look("dropped", RED)


class Sizes(NamedTuple):
    """Units in a row at most; width of a unit with the gap behind it, of that gap, of the margin.

    The picture is ``width`` wide at least. Where a block is longer than a row, its units become
    narrower until they fit, down to ``least``.
    """

    columns: int
    cell: int
    gap: int
    margin: int
    width: int
    least: int


WIDE, NARROW = Sizes(13, 76, 16, 58, 800, 76), Sizes(5, 64, 12, 12, 340, 46)
"""On a screen, and on a telephone of 390 pixels, where text keeps its size."""


class Row(NamedTuple):
    """Units ``start`` to ``end`` (half open) stand side by side."""

    start: int
    end: int


class Status(NamedTuple):
    """How a unit appears, which may be dropped, and whether an activation stays behind it."""

    look: Look
    activation: bool


def chain_picture(
    graph: LayerGraph, plan: MergePlan, kinds: Mapping[str, Look], sizes: Sizes = WIDE
) -> str:
    """Returns the SVG picture of a network's units and of what the plan makes of them.

    Rows wrap at the ends of blocks. Colours, outlines and shapes tell what becomes of a unit, so
    that nothing rests on colour alone; every box names its unit and geometry when pointed at.

    Args:
        graph: The traced network.
        plan: What replaces what.
        kinds: How each kind of replacement appears; any other appears by its name.
        sizes: Of rows and boxes.
    """
    rows = wrap_rows(graph, plan, sizes.columns)
    longest = max((row.end - row.start for row in rows), default=1)
    fitting = (sizes.width - sizes.margin) // longest
    sizes = sizes._replace(cell=min(sizes.cell, max(sizes.least, fitting)))
    looks = {candidate: look_of(candidate, kinds) for candidate in plan.candidates}
    return render(
        "chain.svg",
        graph=graph,
        plan=plan,
        rows=rows,
        sizes=sizes,
        statuses=statuses(plan, kinds),
        looks=looks,
        legend=dict.fromkeys(looks[c] for c in plan.changed if c.convs),
        survivors=surviving_residuals(graph, plan),
        map_runs=partial(map_runs, graph),
        box_height=box_height,
        dropped=DROPPED,
    )


def look_of(candidate: Candidate, kinds: Mapping[str, Look]) -> Look:
    """Returns how a candidate appears: by the name of its kind where nothing is known of it."""
    return UNTOUCHED if candidate.original else look_of_kind(candidate.kind, kinds)


def look_of_kind(kind: str, kinds: Mapping[str, Look]) -> Look:
    """Returns how a kind appears."""
    return kinds.get(kind, Look(kind, GREEN))


def statuses(plan: MergePlan, kinds: Mapping[str, Look]) -> tuple[Status, ...]:
    """Returns what becomes of every unit, in order.

    A unit stays in some form where its candidate keeps it, or runs convolutions without saying
    which units they come from.
    """
    found: list[Status] = []
    for candidate in plan.candidates:
        look, block = look_of(candidate, kinds), candidate.block
        behind: list[str | None] = [None] * len(block)
        if len(candidate.convs) == len(block):  # unit by unit
            behind = [spec.activation for spec in candidate.convs]
        behind[-1] = candidate.activation
        for index, activation in enumerate(behind, block.start):
            stays = index in candidate.kept or (candidate.convs and not candidate.kept)
            found.append(Status(look if stays else DROPPED, activation is not None))
    return tuple(found)


def wrap_rows(graph: LayerGraph, plan: MergePlan, columns: int) -> tuple[Row, ...]:
    """Returns even rows of at most ``columns`` units that tear no block.

    A row that cannot but tear a residual is as long as it may be; any other tears none. A block
    that is longer than a row gets a row of its own.

    Args:
        graph: The traced network.
        plan: Gives the blocks.
        columns: Units in a row at most.
    """
    units, ends = len(graph.units), [c.block.end for c in plan.candidates]
    residuals = _residuals(graph)
    even = math.ceil(units / math.ceil(units / columns)) if units else 0
    rows: list[Row] = []
    while (start := rows[-1].end if rows else 0) < units:
        later = [end for end in ends if end > start]
        fitting = [end for end in later if end <= start + even] or later[:1]
        whole = [e for e in fitting if not any(r.start < e < r.end for r in residuals)]
        rows.append(Row(start, (whole or fitting)[-1]))
    return tuple(rows)


def surviving_residuals(graph: LayerGraph, plan: MergePlan) -> tuple[Residual | Branch, ...]:
    """Returns the residuals and branches that no block of the plan swallows whole."""
    inside = [(c.block, open_residual(graph, c)) for c in plan.changed]
    return tuple(
        r
        for r in _residuals(graph)
        if not any(b.start <= r.start and r.end <= b.end and r != o for b, o in inside)
    )


def _residuals(graph: LayerGraph) -> tuple[Residual | Branch, ...]:
    return (*graph.residuals, *(b for b in graph.branches if b.macs is None))


def box_height(spec: ConvSpec | PieceSpec) -> float:
    """Returns the height of a box: a step for every doubling of the output channels."""
    return round(min(64.0, max(30.0, 30 + 5.5 * math.log2(max(1, spec.out_channels) / 16))), 2)


def map_runs(graph: LayerGraph, row: Row) -> tuple[tuple[int, int, tuple[int, int]], ...]:
    """Returns the runs ``(start, end, (rows, columns))`` of one output map size within a row."""
    runs: list[tuple[int, int, tuple[int, int]]] = []
    for unit in graph.units[row.start : row.end]:
        size = unit.spec.out_size
        start = runs.pop()[0] if runs and runs[-1][2] == size else unit.index
        runs.append((start, unit.index + 1, size))
    return tuple(runs)
