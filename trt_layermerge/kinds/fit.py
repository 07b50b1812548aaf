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

from trt_layermerge.core.candidate import Candidate, finish, merged_spec
from trt_layermerge.core.conv import ConvSpec, Pair
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import Block, ConvUnit
from trt_layermerge.kinds.kind import Kind
from trt_layermerge.kinds.limits import Limits


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
        for size in limits.kernels:
            if size > max(whole.extent):
                continue
            spec = _centred(whole, size, out_size)
            if spec is None:
                continue
            yield finish(graph, block, self.name, (), (spec,))
            if depthwise:
                grouped = replace(spec, groups=spec.in_channels)
                yield finish(graph, block, self.name, (), (grouped,))


def _span(graph: LayerGraph, block: Block) -> ConvSpec:
    """Returns a convolution that sees as far as its map is wide, from a branch's input to its end.

    Its stride is the ratio of the two maps, rounded up, and it is centred on every output pixel.
    """
    (channels, size), (out_channels, out_size) = graph.ends(block)
    down, right = (-(-a // b) for a, b in zip(size, out_size, strict=True))
    rows, columns = ((side - 1) // 2 for side in size)
    kernel, padding = (2 * rows + 1, 2 * columns + 1), (rows, columns, rows, columns)
    return ConvSpec(channels, out_channels, kernel, (down, right), padding, (1, 1), 1, *size)


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
