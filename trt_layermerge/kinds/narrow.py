"""``narrow``: two or three units stay, with fewer channels between them.

conv(c→m) · σ · conv(m→f) becomes conv(c→w) · σ · conv(w→f) with w < m, in a residual branch or
between plain units whose inner values nobody else reads; a depthwise convolution between shrinks
with its neighbours. Activations, shortcuts and padding stay as they are. Which channels remain is
decided by backward elimination under least squares (``blocks.elimination``): the ones that the
convolution behind them needs least go, and it is fitted anew. Of a bottleneck the channels before
its last convolution are chosen first, then those before the middle one, whose target are the
outputs that were kept. Without data those with the largest weights remain.

What is gated between (squeeze and excitation) and grouped convolutions are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from trt_layermerge.core.candidate import Candidate, finish
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import Block, ConvUnit, Rules
from trt_layermerge.kinds.kind import Family, Kind
from trt_layermerge.kinds.limits import Limits, fit_refusal

if TYPE_CHECKING:
    from trt_layermerge.blocks import RelaxedBlock
    from trt_layermerge.tracing import TracedNetwork


class Narrow(Kind):
    """Fewer channels inside; offered where it is asked for (``search.kinds``).

    Attributes:
        shares: Of the inner channels, which are offered.
        multiple: Of what the number of channels is one, and at least: processors like eights.
    """

    name = "narrow"
    label = "narrowed"
    colour = "#a8528a"
    rules: tuple[Rules, ...] = ()
    family: Family = "reduction"
    shares: tuple[float, ...] = (0.75, 0.5, 0.25)
    multiple = 8

    def candidates(self, graph: LayerGraph, block: Block, limits: Limits) -> Iterator[Candidate]:
        """Yields one candidate for each share of the channels inside that leaves fewer."""
        units = [u for u in graph.units[block.start : block.end] if isinstance(u, ConvUnit)]
        if not 2 <= len(units) == len(block) <= 3 or not _alone(graph, block):
            return
        specs = [replace(unit.spec.bare(), activation=unit.activation) for unit in units]
        ends, middle = (specs[0], specs[-1]), specs[1:-1]
        mixing = all(spec.groups == 1 for spec in ends)
        if not mixing or not all(spec.groups == 1 or spec.depthwise for spec in middle):
            return
        full = [spec.out_channels for spec in specs[:-1]]
        offered = dict.fromkeys(tuple(self._width(m, s) for m in full) for s in self.shares)
        for widths in offered:
            if widths != tuple(full):
                convs = _narrowed(specs, widths)
                yield finish(graph, block, self.name, (), convs, intact=True)

    def _width(self, channels: int, share: float) -> int:
        """Returns a share of some channels in whole multiples; all of them where that is more."""
        eighths = max(1, round(share * channels / self.multiple))
        return min(channels, self.multiple * eighths)

    def refusal(self, graph: LayerGraph, candidate: Candidate) -> str | None:
        """Returns why it cannot stand there, or be fitted at its full width, or None."""
        reason = super().refusal(graph, candidate)
        if reason is not None:
            return reason
        inner = range(candidate.block.start + 1, candidate.block.end)
        specs = (graph.conv_unit(i).spec for i in inner)
        fits = (
            fit_refusal(1, spec.in_channels * math.prod(spec.kernel))
            for spec in specs
            if spec.groups == 1
        )
        return next((why for why in fits if why is not None), None)

    def replacement(self, traced: TracedNetwork, candidate: Candidate) -> RelaxedBlock:
        """Returns the units with the heaviest of their channels."""
        from trt_layermerge.blocks import NarrowChain

        return NarrowChain(traced, candidate)


def _alone(graph: LayerGraph, block: Block) -> bool:
    """Whether nobody else reads what is inside: no residual begins or ends there, no bridge."""
    inside = range(block.start + 1, block.end)
    torn = any(r.start in inside or r.end in inside for r in graph.residuals)
    bridged = any(b.start + 1 in inside for b in graph.bridges)
    return graph.branch_at(block) is None and not torn and not bridged


def _narrowed(specs: Sequence[ConvSpec], widths: Sequence[int]) -> tuple[ConvSpec, ...]:
    """Returns convolutions of other widths between them."""
    ends = [specs[0].in_channels, *widths, specs[-1].out_channels]
    return tuple(
        replace(
            spec,
            in_channels=ends[number],
            out_channels=ends[number + 1],
            groups=ends[number] if spec.groups > 1 else 1,
        )
        for number, spec in enumerate(specs)
    )
