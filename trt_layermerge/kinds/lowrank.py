"""``lowrank``: a dense convolution becomes two of low rank, with nothing between them.

An encoder of few channels, in k groups, then a decoder with the bias and the normalisation (ALDS,
NeurIPS 2021; the algebra is in ``blocks.factors``). Per axis the encoder has the taps, and with
them stride, padding and dilation, or the decoder has. Stated, and built, are also splits of what
several kept units compose to, and of k > 1; of these none is offered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from trt_layermerge.core.candidate import Candidate, finish, merged_spec
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.geometry import composition_refusal
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import Block, ConvUnit, Rules
from trt_layermerge.kinds.kind import Family, Kind
from trt_layermerge.kinds.limits import Limits, fit_refusal

if TYPE_CHECKING:
    from trt_layermerge.blocks import ComposedBlock, RelaxedBlock, Start
    from trt_layermerge.tracing import TracedNetwork

Owns = tuple[bool, bool]

SCHEMES: tuple[Owns, ...] = ((True, True), (False, True), (True, False), (False, False))
"""Whether the encoder owns the taps along rows and along columns, by the published number."""

OFFERED = (1, 3)
"""Schemes that are offered. With taps along columns first, along rows then (1), the distance of the
answers was a sixth to a half of that by 0 and 3 at equal arithmetic, on the units of a ResNet-20;
2 is as good. Kernels of 3 are plainer: 1x1, then all taps in the decoder."""


class LowRank(Kind):
    """Two convolutions of low rank; offered where it is asked for (``search.kinds``).

    Attributes:
        shares: Ranks that are offered, as shares of the one that would save no arithmetic.
        multiple: Of what a rank is one, and at least; on wide layers two or four times it.
    """

    name = "lowrank"
    label = "low rank"
    colour = "#8a7a00"
    rules: tuple[Rules, ...] = ()
    family: Family = "reduction"
    spectral = True
    shares: tuple[float, ...] = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
    multiple = 8

    def candidates(self, graph: LayerGraph, block: Block, limits: Limits) -> Iterator[Candidate]:
        """Yields a few ranks of a single dense unit, under each scheme that differs."""
        unit = graph.units[block.start]
        if len(block) > 1 or not isinstance(unit, ConvUnit) or unit.spec.groups > 1:
            return
        whole = merged_spec(graph, block, (unit.index,))
        for number in (0,) if whole.pointwise else OFFERED:
            for rank in self._ranks(whole, SCHEMES[number]):
                convs = split(whole, SCHEMES[number], 1, rank)
                yield finish(graph, block, self.name, (unit.index,), convs)

    def _ranks(self, whole: ConvSpec, owns: Owns) -> list[int]:
        """Returns ranks that save arithmetic, the least first."""
        even = whole.macs / sum(spec.macs for spec in split(whole, owns, 1, 1))
        step = self.multiple * next(n for n in (4, 2, 1) if even >= 64 * n or n == 1)
        found = {step * max(1, round(share * even / step)) for share in self.shares}
        return sorted(rank for rank in found if rank < even)

    def refusal(self, graph: LayerGraph, candidate: Candidate) -> str | None:
        """Returns why it is no split of what its kept units compose to, or too large to fit."""
        reason = super().refusal(graph, candidate)
        if reason is not None:
            return reason
        if len(candidate.convs) != 2 or not candidate.kept:
            return "it is no encoder and decoder of what kept units compose to"
        whole = merged_spec(graph, candidate.block, candidate.kept)
        encoder, decoder = (spec.bare() for spec in candidate.convs)
        expected = split(whole, _form(candidate)[0], encoder.groups, encoder.out_channels)
        if whole.groups > 1 or (encoder, decoder) != expected:
            return f"its convolutions are no split of {whole}"
        channels, taps = whole.in_channels // encoder.groups, math.prod(encoder.kernel)
        full = min(channels * taps, whole.out_channels * math.prod(decoder.kernel))
        if encoder.out_channels > full * encoder.groups:
            return f"{encoder.out_channels} channels are more than full rank"
        too_large = fit_refusal(1, whole.in_channels * math.prod(whole.kernel))
        return too_large or composition_refusal(graph, replace(candidate, convs=(whole,)))

    def replacement(self, traced: TracedNetwork, candidate: Candidate) -> RelaxedBlock:
        """Returns the split by singular values; the decoder has bias and normalisation."""
        from trt_layermerge.blocks import LowRankChain, Start
        from trt_layermerge.blocks.factors import decompose

        whole = _composed(traced, candidate)
        start = _start(whole)
        first, last = decompose(start.weight, *_form(candidate))
        starts = Start(first), replace(start, weight=last)
        return LowRankChain(candidate, next(whole.parameters()), starts)

    def repairs(self, block: RelaxedBlock) -> tuple[str, ...]:
        """Returns the start, the start with a fitted decoder, and the fit of both.

        The last leaves the least error; the second was better for the answers as often.
        """
        return "none", "ls-variance", *block.fits

    def weight_error(self, traced: TracedNetwork, candidate: Candidate) -> float:
        """Returns ‖W − Ŵ‖₂ / ‖W‖₂ of the folded weights (``blocks.factors.spectral_error``)."""
        from trt_layermerge.blocks.factors import spectral_error

        return spectral_error(_start(_composed(traced, candidate)).weight, *_form(candidate))


def split(whole: ConvSpec, owns: Owns, groups: int, channels: int) -> tuple[ConvSpec, ConvSpec]:
    """Returns encoder and decoder of a dense convolution, bare; each axis goes to one of them.

    Args:
        whole: The convolution.
        owns: Whether the encoder has the taps along rows, and along columns.
        groups: Of the encoder.
        channels: Of the value between them; a multiple of the groups.
    """
    whole = whole.bare()
    encoder = _along(replace(whole, out_channels=channels, groups=groups), owns)
    rows, columns = encoder.out_size
    decoder = replace(whole, in_channels=channels, height=rows, width=columns)
    return encoder, _along(decoder, (not owns[0], not owns[1]))


def _form(candidate: Candidate) -> tuple[Owns, int, int]:
    """Returns which taps the encoder owns, its groups, and the rank of each of them."""
    encoder, decoder = candidate.convs
    owns = decoder.kernel[0] == 1, decoder.kernel[1] == 1
    return owns, encoder.groups, encoder.out_channels // encoder.groups


def _composed(traced: TracedNetwork, candidate: Candidate) -> ComposedBlock:
    """Returns what is split, before it is."""
    from trt_layermerge.blocks import ComposedBlock

    spec = merged_spec(traced.graph, candidate.block, candidate.kept)
    return ComposedBlock(traced, replace(candidate, convs=(spec,)))


def _start(block: ComposedBlock) -> Start:
    """Returns a unit's own weights, or where it has a shortcut of its own what both merge into.

    A normalisation stays apart in the first case only.
    """
    from trt_layermerge.blocks import Start

    if len(block.steps) == 1 and block.last is not None:
        conv = block.last.conv
        return Start(conv.weight.detach(), conv.bias, block.last.norm)
    kernel = block.kernel()
    assert kernel is not None  # something is kept
    return Start(kernel.weight, kernel.bias)


def _along(spec: ConvSpec, axes: Owns) -> ConvSpec:
    """Returns a convolution with one tap, and no step or padding, along the axes not named."""
    (tall, wide), (top, left, bottom, right) = axes, spec.padding
    return replace(
        spec,
        kernel=(spec.kernel[0] if tall else 1, spec.kernel[1] if wide else 1),
        stride=(spec.stride[0] if tall else 1, spec.stride[1] if wide else 1),
        padding=(top * tall, left * wide, bottom * tall, right * wide),
        dilation=(spec.dilation[0] if tall else 1, spec.dilation[1] if wide else 1),
    )
