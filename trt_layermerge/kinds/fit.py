"""``fit``: one new convolution of any kernel size in a block's place, fitted by least squares.

Its stride is the product of the block's strides, and it sits where the block's own receptive field
is centred, so whole strided blocks with their shortcut can be replaced too, and branches that are
not understood: least squares know nothing of what they replace. Single units are left alone: at
equal latency, networks of shrunken kernels learn worse than those of fewer units, though they lose
less before training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf

from trt_layermerge.core.candidate import Candidate, finish, merged_spec
from trt_layermerge.core.conv import ConvSpec, Pair
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import Block, ConvUnit
from trt_layermerge.kinds.kind import Kind
from trt_layermerge.kinds.limits import Limits

MORE_MACS = 2
"""How much more arithmetic than a region a convolution may have in its place: one large operation
can be faster than several small ones. Residual branches may hold work that is not counted."""

TRIED = range(1, 16)
"""Kernel sizes that are named to who asked for one that nothing can have."""


class Fit(Kind):
    """One new convolution, from random weights."""

    name = "fit"
    label = "replaced by a fitted conv"
    colour = "#c97b00"

    def candidates(self, graph: LayerGraph, block: Block, limits: Limits) -> Iterator[Candidate]:
        """Yields one candidate per kernel size: dense, and depthwise where the block has such.

        Kernels do not reach beyond what the block itself sees, or beyond its map.
        """
        branch = graph.branch_at(block)
        if len(block) == 1 and branch is None:
            return
        units = [u for u in graph.units[block.start : block.end] if isinstance(u, ConvUnit)]
        if branch is None:
            whole = merged_spec(graph, block, tuple(u.index for u in units))
        else:
            whole = _span(graph, block)
        _, (_, out_size) = graph.ends(block)
        filters = any(u.spec.depthwise and not u.spec.pointwise for u in units)  # no mere scaling
        depthwise = whole.in_channels == whole.out_channels and filters
        most = inf if branch is None or branch.macs is None else MORE_MACS * branch.macs
        for size in limits.kernels:
            if size > max(whole.extent):
                continue
            spec = _centred(whole, size, out_size)
            if spec is None:
                continue
            grouped = [replace(spec, groups=spec.in_channels)] if depthwise else []
            for conv in (spec, *grouped):
                if conv.macs <= most:
                    yield finish(graph, block, self.name, (), (conv,))

    def idle(self, graph: LayerGraph, limits: Limits) -> str | None:
        """Returns the kernel sizes that no block can be fitted with, and those that some can."""
        tried = tuple(sorted({*TRIED, *limits.kernels}))
        found = {
            candidate.convs[0].kernel[0]
            for block in graph.blocks("full")
            if len(block) <= limits.max_units or graph.branch_at(block)
            for candidate in self.candidates(graph, block, replace(limits, kernels=tried))
            if self.refusal(graph, candidate) is None
        }
        if not found or found.issuperset(limits.kernels):  # nothing to fit is no wrong wish
            return None
        sizes = [", ".join(map(str, s)) for s in (set(limits.kernels) - found, sorted(found))]
        return (
            f"no block of this network can become a fitted convolution of size {sizes[0]}: it "
            "reaches beyond what any block sees, or is centred between its pixels; sizes that some "
            f"block can have: {sizes[1]}"
        )


def _span(graph: LayerGraph, block: Block) -> ConvSpec:
    """Returns a convolution that sees as far as its map is wide, from a branch's input to its end.

    Its stride is the ratio of the two maps. It is centred on every output pixel of a padded
    operation, and in the middle of the map where that is larger, as without padding.
    """
    (channels, size), (out_channels, out_size) = graph.ends(block)
    kernel, stride, before = [], [], []
    for length, out in zip(size, out_size, strict=True):
        step, reach = max(1, round(length / out)), (length - 1) // 2
        spare = length - (out - 1) * step - 1  # pixels behind the last one that is centred on
        kernel.append(2 * reach + 1)
        stride.append(step)
        before.append(reach if spare < step else reach - spare // 2)
    (rows, columns), (down, right), (top, left) = kernel, stride, before
    padding = top, left, top, left
    return ConvSpec(
        channels, out_channels, (rows, columns), (down, right), padding, (1, 1), 1, *size
    )


def _centred(whole: ConvSpec, size: int, out_size: Pair) -> ConvSpec | None:
    """Returns a dense square convolution centred on the receptive field of ``whole``.

    Per axis the field's first tap lies ``p`` before the map and spans ``extent``; a kernel of
    ``size`` taps has the same centre with ``p' = p − (extent − size) / 2``. None if that is not a
    whole number of zeros, or the output size cannot be met.
    """
    before: list[int] = []
    after: list[int] = []
    for axis, length in enumerate((whole.height, whole.width)):
        surplus = whole.extent[axis] - size
        start = whole.padding[axis] - surplus // 2
        end = (out_size[axis] - 1) * whole.stride[axis] + size - length - start
        if surplus % 2 or start < 0 or end <= -whole.stride[axis]:
            return None
        before.append(start)
        after.append(max(end, 0))
    return replace(
        whole.bare(),
        kernel=(size, size),
        padding=(before[0], before[1], after[0], after[1]),
        dilation=(1, 1),
        groups=1,
    )
