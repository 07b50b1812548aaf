"""Convolutions beside each other whose outputs are concatenated become one convolution.

Of one geometry, they read one map x, or its channels cut evenly, in order, x = [x_1, …, x_n]:

    [W_1 * x, …, W_n * x] = [W_1; …; W_n] * x         without channel groups
    [W_1 * x_1, …, W_n * x_n] = [W_1; …; W_n] * x     in n times the groups, as many outputs each

The one convolution does exactly their arithmetic. Kernels of several sizes stay apart: padded to
the largest, they would do more than the network does.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx, nn

from trt_layermerge.tracing.conv import is_plain_conv
from trt_layermerge.tracing.reading import Reading, shape_of
from trt_layermerge.tracing.rewrites.nodes import call_in_place

_JOINS = {torch.cat, torch.concat}
_CUTS = {torch.split, torch.chunk, "split", "chunk"}


def join_parallel(reading: Reading) -> None:
    """Makes one convolution of those that alone feed a concatenation of channels, in place."""
    for node in reading.order:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if node.target not in _JOINS or dim not in (1, -3) or len(shape_of(node)) != 4:
            continue
        found = [(n, reading.module(n)) for n in node.all_input_nodes]
        convs = [m for n, m in found if m is not None and type(m) is nn.Conv2d and is_plain_conv(m)]
        calls = [n for n, _ in found if n in reading.convs and tuple(n.users) == (node,)]
        operands = (
            list(node.args[0]) if node.args and isinstance(node.args[0], list | tuple) else []
        )
        if not len(convs) == len(calls) > 1 or operands != calls:
            continue
        source = _source(reading, calls)
        if source is None or len({_geometry(conv) for conv in convs}) > 1:
            continue
        cut = source is not reading.operand(calls[0])
        even = len({conv.out_channels for conv in convs}) == 1
        if even if cut else convs[0].groups == 1:
            call_in_place(reading.network, node, _joined(convs, cut), source)
            for call in calls:
                node.graph.erase_node(call)


def _source(reading: Reading, calls: Sequence[fx.Node]) -> fx.Node | None:
    """Returns the map that all convolutions read, or whose even parts they read in order."""
    read = [reading.operand(call) for call in calls]
    if len(set(read)) == 1:
        return read[0]
    cuts = {part.args[0] for part in read if part.target is operator.getitem}
    if len(cuts) != 1 or [part.args[1] for part in read] != list(range(len(read))):
        return None
    (cut,) = cuts
    assert isinstance(cut, fx.Node)  # what an element is taken of is a value
    source = cut.all_input_nodes[0]
    sizes = {shape_of(part)[1] for part in read}
    whole = len(sizes) == 1 and sizes.pop() * len(read) == shape_of(source)[1]
    same = {shape_of(part)[2:] for part in read} == {shape_of(source)[2:]}
    return source if cut.target in _CUTS and whole and same else None


def _geometry(conv: nn.Conv2d) -> tuple[object, ...]:
    """Returns what convolutions must share to be one."""
    return conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.in_channels


@torch.no_grad()
def _joined(convs: Sequence[nn.Conv2d], cut: bool) -> nn.Conv2d:
    """Returns several convolutions as one, each with channels of its own where they are cut."""
    first, count = convs[0], len(convs) if cut else 1
    conv = nn.Conv2d(
        first.in_channels * count,
        sum(c.out_channels for c in convs),
        (first.kernel_size[0], first.kernel_size[1]),
        (first.stride[0], first.stride[1]),
        first.padding if isinstance(first.padding, str) else (first.padding[0], first.padding[1]),
        (first.dilation[0], first.dilation[1]),
        first.groups * count,
        any(c.bias is not None for c in convs),
        device="meta",
    )
    weight = torch.cat([c.weight for c in convs])
    conv.weight = nn.Parameter(weight, any(c.weight.requires_grad for c in convs))
    if conv.bias is not None:
        zeros = [c.weight.new_zeros(c.out_channels) for c in convs]
        biases = [z if c.bias is None else c.bias for c, z in zip(convs, zeros, strict=True)]
        conv.bias = nn.Parameter(torch.cat(biases), conv.weight.requires_grad)
    return conv
