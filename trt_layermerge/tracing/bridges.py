"""Group normalisations between two convolutions, and projections beside such branches.

In the residual blocks of diffusion models (norm, SiLU, conv1, plus an embedding of the time; norm,
SiLU, dropout, conv2) the published method merges conv1 and conv2 (LayerMerge, ICML 2024).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import prod

import torch
from torch import fx, nn

from trt_layermerge.core.unit import Bridge
from trt_layermerge.tracing.assemble import Assembly
from trt_layermerge.tracing.pieces import behind
from trt_layermerge.tracing.prepare import has_hooks
from trt_layermerge.tracing.reading import Reading, shape_of
from trt_layermerge.tracing.residuals import Core
from trt_layermerge.tracing.transparent import ADDITIONS

_RESHAPES = {operator.getitem, torch.reshape, torch.unsqueeze, "reshape", "unsqueeze", "view"}
"""What keeps the order of values, where it keeps their number."""


def find_bridges(assembly: Assembly, numbers: Sequence[int]) -> tuple[Bridge, ...]:
    """Returns the group normalisations that alone lead from one unit to the next, in order.

    ``numbers`` tells the unit of each core.
    """
    pairs = zip(assembly.cores, assembly.cores[1:], numbers, numbers[1:], strict=False)
    found = (
        _bridge(assembly.reading, first, second, start)
        for first, second, start, after in pairs
        if after == start + 1
    )
    return tuple(bridge for bridge in found if bridge is not None)


def find_projections(assembly: Assembly, numbers: Sequence[int]) -> tuple[int, ...]:
    """Returns the units that are all that stands beside a branch that is no understood residual.

    ``numbers`` tells the unit of each core.
    """
    reading = assembly.reading
    number = dict(zip((core.tail for core in assembly.cores), numbers, strict=True))
    cores = {core.tail: core for core in assembly.cores}
    found: list[int] = []
    for total in assembly.refused:
        terms = [reading.value(node) for node in total.all_input_nodes]
        for term, other in zip(terms, reversed(terms), strict=True):
            core, beside = cores.get(term), cores.get(other)
            alone = reading.users(term) == (total,) and term is not other
            if core and beside and alone and core.source in behind(beside.source):
                found.append(number[term])
    return tuple(sorted(found))


def _bridge(reading: Reading, first: Core, second: Core, start: int) -> Bridge | None:
    """Returns the bridge from one unit to the next, or None if there is none."""
    if first.tail is not first.conv or second.branch is not second.conv or second.total:
        return None
    node, user = second.source, second.conv
    if node in reading.activations and reading.users(node) == (user,):
        node, user = reading.operand(node), node
    norm = reading.module(node)
    channels = second.spec.out_channels
    if not (type(norm) is nn.GroupNorm and not has_hooks(norm) and not reading.shared(norm)):
        return None
    if reading.users(node) != (user,) or channels % norm.num_groups:
        return None
    before, name = reading.operand(node), str(node.target)
    if reading.users(before) != (node,):
        return None
    if before is first.conv:
        return Bridge(start, name)
    added = _added(reading, before, first.conv)
    if added is None or reading.users(first.conv) != (before,):
        return None
    return Bridge(start, name, str(added.target), reading.operand(added).name)


def _added(reading: Reading, total: fx.Node, conv: fx.Node) -> fx.Node | None:
    """Returns the linear layer whose output an addition adds to every position, or None."""
    terms = [a for a in total.args if isinstance(a, fx.Node)]
    if total.target not in ADDITIONS or len(terms) != 2 or total.kwargs:
        return None
    values = [reading.value(term) for term in terms]
    if conv not in values:
        return None
    node = values[1] if values[0] is conv else values[0]
    batch, channels = shape_of(conv)[:2]
    if shape_of(node) != (batch, channels, 1, 1):
        return None
    while node.target in _RESHAPES and len(node.all_input_nodes) == 1:
        inner = node.all_input_nodes[0]
        if prod(shape_of(inner)) != batch * channels or len(node.users) > 1:
            return None
        node = inner
    layer = reading.module(node)
    plain = type(layer) is nn.Linear and not has_hooks(layer) and not reading.shared(layer)
    return node if plain and shape_of(node) == (batch, channels) else None
