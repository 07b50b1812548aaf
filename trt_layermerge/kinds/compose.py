"""``compose``: keep some convolutions of a block, drop the others, and merge what is left exactly.

Of the subsets that merge into the same convolution only the one with the largest sum of weight
magnitudes is offered (LayerMerge, ICML 2024). Within one kind of convolution that is always the
largest few, so subsets are never enumerated: the choice is how many of each kind to keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from trt_layermerge.core.candidate import Candidate, finish, merged_spec
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import Block, ConvUnit, Rules, Segment
from trt_layermerge.kinds.kind import KeepingKind
from trt_layermerge.kinds.limits import Limits


class Compose(KeepingKind):
    """Kept convolutions, merged exactly."""

    name = "compose"
    label = "merged exactly"
    colour = "#0072b2"
    rules: tuple[Rules, ...] = ("paper", "full")
    family = "composition"

    def candidates(self, graph: LayerGraph, block: Block, limits: Limits) -> Iterator[Candidate]:
        """Yields one candidate for every convolution that the block can merge into.

        At least one convolution is kept, but for what ``limits.lone`` allows.
        """
        if len(block) == 1 and limits.lone and _stands_alone(graph, block):
            yield finish(graph, block, self.name, (), ())
        if len(block) == 1 or graph.branch_at(block):
            return
        best: dict[ConvSpec, tuple[bool, float, Candidate]] = {}
        for kept in _kept_sets(graph, block):
            spec = merged_spec(graph, block, kept)
            if max(spec.extent) > limits.max_kernel:
                continue
            weight = sum(graph.conv_unit(i).weight_l1 for i in kept)
            candidate = finish(graph, block, self.name, kept, (spec,))
            usable = self.refusal(graph, candidate) is None
            if spec not in best or best[spec][:2] < (usable, weight):
                best[spec] = usable, weight, candidate
        yield from sorted((c for _, _, c in best.values()), key=lambda c: c.kept)


def _stands_alone(graph: LayerGraph, block: Block) -> bool:
    """Whether a unit that could be dropped is a segment of its own, in no residual block."""
    unit, segment = graph.units[block.start], Segment(block.start, block.end)
    bridged = any(block.start - 1 <= b.start <= block.start for b in graph.bridges)
    return (
        isinstance(unit, ConvUnit)
        and not unit.irreducible
        and segment in graph.segments
        and not bridged
        and not graph.residuals_inside(block.start, block.end)
    )


def _kept_sets(graph: LayerGraph, block: Block) -> Iterator[tuple[int, ...]]:
    """Yields every choice of how many to keep of each kind, the heaviest of the kind first."""
    units = [graph.conv_unit(i) for i in range(block.start, block.end)]
    required = [u.index for u in units if u.irreducible]
    alike: dict[ConvSpec, list[ConvUnit]] = {}
    for unit in units:
        if not unit.irreducible:
            alike.setdefault(_shape(unit), []).append(unit)
    ranked = [sorted(group, key=lambda u: -u.weight_l1) for group in alike.values()]
    for counts in product(*(range(len(group) + 1) for group in ranked)):
        chosen = [u.index for group, n in zip(ranked, counts, strict=True) for u in group[:n]]
        if kept := tuple(sorted(required + chosen)):
            yield kept


def _shape(unit: ConvUnit) -> ConvSpec:
    """Returns what two units must share to be interchangeable within a merge.

    Where they stand (map size and channels) does not matter to the merged kernel, only whether
    they are depthwise.
    """
    spec = unit.spec.bare()
    groups = 1 if spec.groups == 1 else -1 if spec.depthwise else spec.groups
    return replace(spec, in_channels=0, out_channels=0, groups=groups, height=0, width=0)
