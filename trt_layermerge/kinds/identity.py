"""``identity``: a convolution, or the whole branch of a residual, is removed.

Where a branch is removed its shortcut remains: nothing at all for an identity, one convolution for
a projection.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from trt_layermerge.core.candidate import Candidate, finish
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.geometry import ONE
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import Block, Residual
from trt_layermerge.kinds.kind import KeepingKind
from trt_layermerge.kinds.limits import Limits

if TYPE_CHECKING:
    from trt_layermerge.blocks import RelaxedBlock


class Identity(KeepingKind):
    """Nothing but the shortcut remains."""

    name = "identity"
    label = "left out"
    colour = "#d55e00"
    family = "removal"

    def candidates(self, graph: LayerGraph, block: Block, limits: Limits) -> Iterator[Candidate]:
        """Yields the removal of a shape-preserving unit, or of the branch that the block is."""
        residual = graph.residual_ending_at.get(block.end)
        if residual is not None and residual.start == block.start:
            if len(block) > limits.max_units:
                return
            yield finish(graph, block, self.name, (), _shortcut(graph, residual))
        elif len(block) == 1 and not graph.units[block.start].irreducible:
            yield finish(graph, block, self.name, (), ())

    def repairs(self, block: RelaxedBlock) -> tuple[str, ...]:
        """Returns that none applies: what remains is the original's own."""
        return ("none",)


def _shortcut(graph: LayerGraph, residual: Residual) -> tuple[ConvSpec, ...]:
    """Returns the one convolution that all shortcut paths merge into, or nothing."""
    if all(s.identity for s in residual.shortcuts):
        return ()
    first = graph.units[residual.start].spec
    last = graph.units[residual.end - 1].spec
    projections = residual.projections
    if projections:
        widest = max(projections, key=lambda p: p.extent)
        groups = min(p.groups for p in projections)
        return (replace(widest.bare(), groups=groups),)
    size, channels = (first.height, first.width), first.in_channels
    return (ConvSpec(channels, last.out_channels, ONE, ONE, (0, 0, 0, 0), ONE, channels, *size),)
