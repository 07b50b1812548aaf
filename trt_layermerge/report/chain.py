"""The chain of convolutions before and after, as one picture: blocks stand above what they became.

Every original unit has a column. The upper line shows it as it was, the lower line what runs in
its place; a merged convolution is as wide as the units that it replaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Residual
from trt_layermerge.report.chain_layout import (
    Fate,
    Row,
    box_height,
    fates,
    map_runs,
    nesting,
    surviving_residuals,
    wrap_rows,
)
from trt_layermerge.report.chain_legend import LEGEND_HEIGHT, MINIMUM_WIDTH, legend
from trt_layermerge.report.chain_shapes import (
    GAP,
    addition,
    box,
    dot,
    line,
    skip_path,
    text,
    tint,
)
from trt_layermerge.report.palette import BLUE, GRID, INK, MUTED, ORANGE, RED, STONE, svg_picture

BOX = 52
CELL = BOX + GAP
GUTTER = 58
ROW_HEIGHT = 250
ORIGINAL_Y, MERGED_Y = 92, 184
BAND_TOP, BAND_BOTTOM = 54, 222
COLOURS = {"untouched": STONE, "merged": BLUE, "dropped": RED, "refitted": ORANGE}
KIND_COLOURS = {"compose": BLUE, "fit": ORANGE, "identity": RED}
MAX_REASON = 120


def chain_picture(graph: LayerGraph, plan: MergePlan) -> str:
    """Returns the SVG picture of a network's units and of what the plan makes of them.

    Rows wrap at the ends of blocks. Colours, outlines and shapes tell the fates apart, so that
    none rests on colour alone; every box names its unit and geometry when pointed at.
    """
    rows = wrap_rows(graph, plan)
    walls = _walls(graph)
    columns = max((row.end - row.start for row in rows), default=0)
    width = max(GUTTER + columns * CELL + GAP, MINIMUM_WIDTH)
    parts = [legend()]
    for number, row in enumerate(rows):
        parts.append(f'<g transform="translate(0 {LEGEND_HEIGHT + number * ROW_HEIGHT})">')
        parts += _row(graph, plan, row, walls)
        parts.append("</g>")
    bottom = LEGEND_HEIGHT + len(rows) * ROW_HEIGHT
    for position, (number, reason) in enumerate(walls.values()):
        parts.append(
            text(GUTTER, bottom + 12 + 17 * position, f"{number}  {reason}", anchor="start")
        )
    height = bottom + 17 * len(walls) + 8
    label = f"{len(graph.units)} convolution units before, {plan.conv_count} convolutions after"
    return svg_picture("".join(parts), width, height, label)


def _row(
    graph: LayerGraph, plan: MergePlan, row: Row, walls: dict[int, tuple[int, str]]
) -> Iterator[str]:
    end = _x(row, row.end) - GAP / 2
    yield text(GUTTER - 14, ORIGINAL_Y + 4, "before", anchor="end", size=12, fill=INK)
    yield text(GUTTER - 14, MERGED_Y + 4, "after", anchor="end", size=12, fill=INK)
    candidates = [c for c in plan.candidates if row.start <= c.block.start < row.end]
    for candidate in candidates:
        if not candidate.original:
            left = _x(row, candidate.block.start) - GAP / 2 + 1.5
            right = _x(row, candidate.block.end) - GAP / 2 - 1.5
            yield tint(left, BAND_TOP, right, BAND_BOTTOM, KIND_COLOURS[candidate.kind])
    for y in (ORIGINAL_Y, MERGED_Y):
        yield line(GUTTER - GAP / 2, y, end + (6 if row.end < len(graph.units) else 0), y, INK)
    yield from _maps(graph, row)
    for residual in graph.residuals:
        yield from _skip(residual, row, ORIGINAL_Y, -43 - 7 * nesting(graph, residual))
    for residual in surviving_residuals(graph, plan):
        yield from _skip(residual, row, MERGED_Y, 43 + 7 * nesting(graph, residual))
    every_fate = fates(graph, plan)
    for index in range(row.start, row.end):
        yield from _original(graph, row, index, every_fate[index])
    for candidate in candidates:
        yield from _replacement(row, candidate)
    for start, (number, _) in walls.items():
        if row.start <= start < row.end:
            yield from _wall(_x(row, start) - GAP / 2, number)


def _x(row: Row, index: int) -> float:
    """Returns the left edge of a unit's box."""
    return GUTTER + (index - row.start) * CELL


def _original(graph: LayerGraph, row: Row, index: int, fate: Fate) -> Iterator[str]:
    unit = graph.units[index]
    x = _x(row, index)
    dropped = fate.conv == "dropped"
    words = f"{index} {unit.name}: {unit.spec} ({fate.conv})"
    height = box_height(unit.spec.out_channels)
    yield f"<g><title>{escape(words)}</title>"
    yield box(x, ORIGINAL_Y, BOX, height, COLOURS[fate.conv], crossed=dropped)
    yield from _labels(x + BOX / 2, ORIGINAL_Y, unit.spec, MUTED if dropped else INK)
    yield text(x + BOX / 2, ORIGINAL_Y + 46, str(index), size=9.5)
    if unit.activation is not None:
        yield dot(x + BOX + GAP / 2, ORIGINAL_Y, kept=fate.activation)
    yield "</g>"


def _replacement(row: Row, candidate: Candidate) -> Iterator[str]:
    """Draws what runs in a block's place; an identity is the bare line."""
    left = _x(row, candidate.block.start)
    right = _x(row, candidate.block.end) - GAP
    colour = STONE if candidate.original else KIND_COLOURS[candidate.kind]
    step = (right - left + GAP) / max(1, len(candidate.convs))
    yield f"<g><title>{escape(str(candidate))}</title>"
    for position, spec in enumerate(candidate.convs):
        x, width = left + position * step, step - GAP
        yield box(x, MERGED_Y, width, box_height(spec.out_channels), colour)
        yield from _labels(x + width / 2, MERGED_Y, spec, INK)
        inner = position + 1 < len(candidate.convs)
        if inner and spec.activation is not None:
            yield dot(x + width + GAP / 2, MERGED_Y, kept=True)
    if not candidate.convs:
        yield text((left + right) / 2, MERGED_Y - 8, "no conv", fill=MUTED)
    if candidate.activation is not None:
        yield dot(right + GAP / 2, MERGED_Y, kept=True)
    yield "</g>"


def _labels(x: float, y: float, spec: ConvSpec, fill: str) -> Iterator[str]:
    """Draws kernel and channels in a box: ``dw 3×3 /2`` over ``16→32``."""
    rows, columns = spec.kernel
    kind = "dw " if spec.depthwise else f"g{spec.groups} " if spec.groups > 1 else ""
    stride = "" if spec.stride == (1, 1) else f"/{max(spec.stride)}"
    kernel = f"{kind}{rows}×{columns}{stride}"
    same = spec.in_channels == spec.out_channels
    channels = str(spec.out_channels) if same else f"{spec.in_channels}→{spec.out_channels}"
    yield text(x, y - 2.5, kernel, size=_size(kernel), fill=fill, bold=True)
    yield text(x, y + 10.5, channels, size=_size(channels) - 1.5, fill=fill)


def _size(words: str) -> float:
    """Returns the font size at which a label fits the narrowest box."""
    return {6: 11, 7: 10.5, 8: 9.5}.get(len(words), 11.5 if len(words) < 6 else 8.5)


def _skip(residual: Residual, row: Row, y: float, offset: float) -> Iterator[str]:
    """Draws the part of a residual path that crosses a row, its ridge ``offset`` from the line."""
    if residual.end <= row.start or residual.start >= row.end:
        return
    begins, ends = residual.start >= row.start, residual.end <= row.end
    left = _x(row, residual.start) - GAP / 2 + 4 if begins else GUTTER - GAP
    right = _x(row, residual.end) - GAP / 2 - 4 if ends else _x(row, row.end) - GAP / 2 + 6
    yield skip_path(left, right, y, y + offset, begins, ends)
    if ends:
        yield addition(right, y + (13 if offset > 0 else -13))
    if begins and residual.projections:
        kernel = residual.projections[0].kernel
        middle = (left + right) / 2
        yield box(middle - 15, y + offset, 30, 13, STONE)
        yield text(middle, y + offset + 3.3, f"{kernel[0]}×{kernel[1]}", size=9, fill=INK)


def _maps(graph: LayerGraph, row: Row) -> Iterator[str]:
    """Draws the size of the output maps over the units that share it."""
    for start, end, (rows, columns) in map_runs(graph, row):
        left, right = _x(row, start), _x(row, end) - GAP
        yield line(left, 28, right, 28, GRID, width=3)
        words = f"{rows}×{columns} map" if end - start > 1 else f"{rows}×{columns}"
        yield text((left + right) / 2, 21, words)


def _wall(x: float, number: int) -> Iterator[str]:
    yield line(x, 38, x, BAND_BOTTOM + 8, INK, width=1.6, dashes="2 4")
    yield text(x, BAND_BOTTOM + 20, str(number), size=11, fill=INK, bold=True)


def _walls(graph: LayerGraph) -> dict[int, tuple[int, str]]:
    """Returns number and reason of every border between segments, by the unit behind it."""
    walls: dict[int, tuple[int, str]] = {}
    for number, segment in enumerate(graph.segments[1:], 1):
        near = (segment.start - 1, segment.start)
        reasons = [b.reason for b in graph.barriers if b.unit in near]
        reason = reasons[0] if reasons else "nothing merges across (see the table of barriers)"
        short = reason if len(reason) <= MAX_REASON else reason[: MAX_REASON - 1] + "…"
        walls[segment.start] = (number, f"before unit {segment.start}: {short}")
    return walls
