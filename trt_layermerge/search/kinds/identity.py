"""``identity``: a convolution, or the whole branch of a residual, is removed.

Where a branch is removed its shortcut remains: nothing at all for an identity, one convolution for
a projection.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from trt_layermerge.core.candidate import Candidate, finish
from trt_layermerge.core.conv import ConvSpec, Pads
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import Block, Residual, Rules
from trt_layermerge.search.limits import Limits

RULES: tuple[Rules, ...] = ("full",)


def candidates(graph: LayerGraph, block: Block, limits: Limits) -> Iterator[Candidate]:
    """Yields the removal of a shape-preserving unit, or of the branch that the block is."""
    residual = graph.residual_ending_at.get(block.end)
    if residual is not None and residual.start == block.start:
        if len(block) > limits.max_units:
            return
        yield finish(graph, block, "identity", (), _shortcut(graph, residual))
    elif len(block) == 1 and not graph.units[block.start].irreducible:
        yield finish(graph, block, "identity", (), ())


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
    no_pads: Pads = (0, 0, 0, 0)
    channels = first.in_channels
    return (
        ConvSpec(
            in_channels=channels,
            out_channels=last.out_channels,
            kernel=(1, 1),
            stride=(1, 1),
            padding=no_pads,
            dilation=(1, 1),
            groups=channels,
            height=first.height,
            width=first.width,
        ),
    )
