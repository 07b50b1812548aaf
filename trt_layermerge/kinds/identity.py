"""``identity``: a convolution, or the whole branch of a residual, is removed.

Where a branch is removed its shortcut remains: nothing at all for an identity, one convolution for
a projection. The branch need not be understood for that, and what is no branch can go as well where
what comes out has the shape of what goes in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trt_layermerge.core.candidate import Candidate, finish, left_out
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.geometry import composition
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import Block, ConvUnit
from trt_layermerge.errors import UnsupportedModelError
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
        branch = graph.branch_at(block)
        if branch is not None:
            if branch.shortcut is not None:
                yield left_out(graph, branch, self.name)
            return
        residual = graph.residual_ending_at.get(block.end)
        if residual is not None and residual.start == block.start:
            if len(block) > limits.max_units:
                return
            yield finish(graph, block, self.name, (), _shortcut(graph, block))
            return
        unit = graph.units[block.start]
        if len(block) == 1 and isinstance(unit, ConvUnit) and not unit.irreducible:
            yield finish(graph, block, self.name, (), ())

    def repairs(self, block: RelaxedBlock) -> tuple[str, ...]:
        """Returns that none applies: what remains is the original's own."""
        return ("none",)


def _shortcut(graph: LayerGraph, block: Block) -> tuple[ConvSpec, ...]:
    """Returns the one convolution that all shortcut paths merge into, or nothing."""
    try:
        spec = composition(graph, block, ()).spec
    except UnsupportedModelError:
        return ()  # it is refused with that reason
    return () if spec is None else (spec,)
