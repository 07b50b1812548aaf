"""Which runs of units may become one block.

A block lies inside one residual branch or contains whole residual blocks; it never overlaps a
skip connection in part. A start strictly inside a residual therefore cannot grow past its end, and
an end that reaches the source of a skip jumps to its target (LayerMerge, ICML 2024, section 3).

A part that is not understood is a block as a whole, and no other block crosses its ends; so is the
module that it stands in.

``paper`` knows no such parts, and adds the limits of the published experiments, stated without
architecture names: the stem, a pointwise convolution that feeds the global pooling and projections
beside what is no understood part stay outside, and blocks end after a strided convolution, or
after the pointwise one that follows it where it is depthwise. Across a group normalisation
(``Bridge``) two units are a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trt_layermerge.core.unit import Block, ConvUnit, Rules

if TYPE_CHECKING:
    from trt_layermerge.core.graph import LayerGraph


def enumerate_blocks(graph: LayerGraph, rules: Rules) -> tuple[Block, ...]:
    """Returns every block that the rules allow, ordered by start, then end."""
    runs = _paper_runs(graph) if rules == "paper" else [(s.start, s.end) for s in graph.segments]
    found = {
        Block(start, end)
        for first, last in runs
        for start in range(first, last)
        for end in _ends(graph, start, last)
    }
    if rules == "full":
        found |= {Block(branch.start, branch.end) for branch in (*graph.branches, *graph.wholes)}
    else:
        bridged = (Block(b.start, b.start + 2) for b in graph.bridges)
        alone = {Block(start, end) for start, end in runs if end == start + 1}
        found |= {b for b in bridged if _is_paper_bridge(graph, b, alone)}
    return tuple(sorted(found))


def _is_paper_bridge(graph: LayerGraph, block: Block, alone: set[Block]) -> bool:
    """Whether both units of a bridge may be in blocks, and no stride ends one between them."""
    first, second = Block(block.start, block.start + 1), Block(block.start + 1, block.end)
    unit = graph.units[block.start]
    return {first, second} <= alone and isinstance(unit, ConvUnit) and not _strided(unit)


def _ends(graph: LayerGraph, start: int, limit: int) -> Iterator[int]:
    """Yields every end that a block from ``start`` may have, up to ``limit``."""
    around = [r.end for r in graph.residuals if r.start < start < r.end]
    limit = min([limit, *around])
    end = start + 1
    while end <= limit:
        yield end
        # Past an end at which a skip begins, the block must swallow that residual whole.
        begun = [r.end for r in graph.residuals if r.start == end]
        end = max(begun, default=end + 1)


def _paper_runs(graph: LayerGraph) -> list[tuple[int, int]]:
    """Returns the stretches between the breaks of the published experiments."""
    runs: list[tuple[int, int]] = []
    for segment in graph.segments:
        start = segment.start
        units = [u for u in graph.units[start : segment.end] if isinstance(u, ConvUnit)]
        for before, unit, after in zip([None, *units], units, [*units[1:], None], strict=False):
            if unit.index in (0, graph.head_pointwise, *graph.projections):  # 0 is the stem
                if start < unit.index:
                    runs.append((start, unit.index))
                start = unit.index + 1
            elif _breaks_after(before, unit, after):
                runs.append((start, unit.index + 1))
                start = unit.index + 1
        if units and start < segment.end:
            runs.append((start, segment.end))
    return runs


def _breaks_after(before: ConvUnit | None, unit: ConvUnit, after: ConvUnit | None) -> bool:
    """Whether a run ends with a unit because of a stride: its own, or that of the unit before."""
    if _strided(unit):
        return not (unit.spec.depthwise and after is not None and after.spec.pointwise)
    strided = before is not None and _strided(before) and before.spec.depthwise
    return strided and unit.spec.pointwise


def _strided(unit: ConvUnit) -> bool:
    return unit.spec.stride != (1, 1)
