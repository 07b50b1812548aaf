"""Parts that are not understood: where they begin and end, and what they are.

A residual *branch* stands between one value and an addition that joins it with what is computed
from the same value beside it. Any other *region* ends where several values that come of one are
joined: a concatenation, the product with a gate, a sum of two branches. Nothing inside is read from
outside, so whatever it does, it can be left out or replaced as a whole (LayerMerge, ICML 2024,
knows branches of convolutions only). It begins with the last map that dominates its end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile

from torch import fx, nn

from trt_layermerge.core.conv import PieceSpec, Spec
from trt_layermerge.tracing.assemble import Assembly
from trt_layermerge.tracing.pieces import (
    Dominators,
    between,
    dominating,
    dominators,
    enclosed,
    piece_spec,
)
from trt_layermerge.tracing.reading import Reading, shape_of
from trt_layermerge.tracing.rewrites.affine import PRODUCTS
from trt_layermerge.tracing.rewrites.constants import is_stored

LONGEST = 16
"""Convolutions in a region at most: larger ones are most of a network, not a block of it."""


@dataclass(frozen=True)
class OpaqueBranch:
    """A residual branch or a region with something inside that no merge crosses.

    Attributes:
        source: The value from which branch and shortcut start.
        branch: The value of the branch; that of the whole region.
        shortcut: The value beside it; ``source`` where it is an identity. Of a region ``source``
            if it has the shape of what comes out, or else None.
        total: Their sum, or the value of the region.
        tail: The activation behind it that alone reads it, or ``total``.
        activation: Canonical name of that activation, or None.
        inside: Everything between source and total, in order.
        spec: The same with total and activation.
        remains: What computes the shortcut from the source; empty for an identity.
        macs: Multiply-accumulates of a region (``core.unit.Branch``); None for a residual branch.
        first: Number of the first core inside; that of the next one where there is none.
        last: Behind the last one.
    """

    source: fx.Node
    branch: fx.Node
    shortcut: fx.Node | None
    total: fx.Node
    tail: fx.Node
    activation: str | None
    inside: tuple[fx.Node, ...]
    spec: PieceSpec
    remains: tuple[Spec, ...]
    macs: int | None
    first: int
    last: int

    @property
    def name(self) -> str:
        """What to call it: the module that all of its layers lie in, or its addition."""
        paths = [str(n.target).split(".") for n in self.inside if n.op == "call_module"]
        common = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
        name = ".".join(parts[0] for parts in common)
        return name if name and name.split(".") not in paths else self.total.name


def opaque_branches(assembly: Assembly) -> tuple[OpaqueBranch, ...]:
    """Returns the branches and regions that are no understood residual, by order of their ends."""
    before = dominators(assembly.reading)
    found = (
        _branch(assembly, before, end) or _region(assembly, before, end)
        for end in _joins(assembly, before)
    )
    return tuple(part for part in found if part is not None)


def arithmetic(reading: Reading, nodes: Iterable[fx.Node]) -> int:
    """Returns the multiply-accumulates of all weights that operations hold, one image."""
    return sum(
        math.prod(shape_of(node)[1:]) * (weight.numel() // weight.shape[0])
        for node in nodes
        for weight in getattr(reading.module(node), "parameters", tuple)()
        if weight.dim() > 1
    )


def strides(source: fx.Node, end: fx.Node) -> bool:
    """Whether two values are maps of which the second is as large, or smaller by one factor."""
    before, after = shape_of(source), shape_of(end)
    if len(before) != 4 or len(after) != 4 or before[0] != after[0]:
        return False
    steps = {round(a / b) for a, b in zip(before[2:], after[2:], strict=True)}
    return len(steps) == 1 and all(a >= b for a, b in zip(before[2:], after[2:], strict=True))


def _joins(assembly: Assembly, before: Dominators) -> Iterator[fx.Node]:
    """Yields every value of several others that is no sum of an understood residual, in order."""
    for node in assembly.reading.order:
        understood = node in assembly.reading.additions and node not in assembly.refused
        if sum(n in before for n in node.all_input_nodes) > 1 and not understood:
            yield node


def _branch(assembly: Assembly, before: Dominators, total: fx.Node) -> OpaqueBranch | None:
    """Returns the branch that ends at an addition, or None where there is none to leave out."""
    reading, source = assembly.reading, before[total]
    terms = [node for node in total.args if isinstance(node, fx.Node)]
    if total not in assembly.refused or source is None or len(terms) != 2:
        return None
    inside = enclosed(source, total) if len(shape_of(source)) == 4 else None
    shortcut = None if inside is None else _shortcut(reading, source, terms)
    if inside is None or shortcut is None:
        return None
    branch = terms[1] if shortcut is terms[0] else terms[0]
    identity = reading.value(shortcut) is reading.value(source)
    remains = () if identity else (_remainder(assembly, source, shortcut),)
    shortcut = source if identity else shortcut
    return _opaque(assembly, (source, branch, shortcut, total), inside, remains)


def _region(assembly: Assembly, before: Dominators, end: fx.Node) -> OpaqueBranch | None:
    """Returns the region that ends where values are joined, or None where it is none."""
    source = next((v for v in dominating(before, end) if len(shape_of(v)) == 4), None)
    if source is None or not strides(source, end):
        return None
    inside = enclosed(source, end)
    convs = sum(core.conv in (inside or ()) for core in assembly.cores)
    if inside is None or not 0 < convs <= LONGEST:
        return None
    shortcut = source if shape_of(source) == shape_of(end) else None
    macs = arithmetic(assembly.reading, inside)
    return _opaque(assembly, (source, end, shortcut, end), inside, (), macs)


def _opaque(
    assembly: Assembly,
    values: tuple[fx.Node, fx.Node, fx.Node | None, fx.Node],
    inside: tuple[fx.Node, ...],
    remains: tuple[Spec, ...],
    macs: int | None = None,
) -> OpaqueBranch | None:
    """Returns a part with its units and its activation, or None where others merge into it.

    Args:
        assembly: What was understood of the network.
        values: Source, branch, shortcut and total.
        inside: Everything between source and total.
        remains: What computes the shortcut.
        macs: Multiply-accumulates of a region.
    """
    reading, (source, branch, shortcut, total) = assembly.reading, values
    users = reading.users(total)
    acts = len(users) == 1 and users[0] in reading.activations
    tail = users[0] if acts else total
    numbers = [i for i, core in enumerate(assembly.cores) if core.conv in inside]
    first = min(numbers, default=_cores_before(assembly, total))
    last = first + len(numbers)
    if numbers != list(range(first, last)) or not _stands_apart(assembly, first, last):
        return None
    return OpaqueBranch(
        source=source,
        branch=branch,
        shortcut=shortcut,
        total=total,
        tail=tail,
        activation=reading.activations[tail] if acts else None,
        inside=inside,
        spec=piece_spec(reading, source, tail),
        remains=remains,
        macs=macs,
        first=first,
        last=last,
    )


def _stands_apart(assembly: Assembly, first: int, last: int) -> bool:
    """Whether no run of linked units crosses an end of a branch."""
    ends = [end - 1 for end in (first, last) if 0 < end < len(assembly.cores)]
    return not any(assembly.linked[end] for end in ends)


def _remainder(assembly: Assembly, source: fx.Node, shortcut: fx.Node) -> Spec:
    """Returns what computes a shortcut as something to be timed: a unit, or a piece."""
    reading = assembly.reading
    for core in assembly.cores:
        if core.tail is shortcut and core.source is reading.value(source):
            return core.spec
    return piece_spec(reading, source, shortcut)


def _cores_before(assembly: Assembly, node: fx.Node) -> int:
    order = assembly.reading.order
    return sum(order[core.conv] < order[node] for core in assembly.cores)


def _shortcut(reading: Reading, source: fx.Node, terms: Iterable[fx.Node]) -> fx.Node | None:
    """Returns the term that remains without the branch.

    The source itself, or what comes of it by pooling, normalising, scaling and at most one
    convolution, as in a projection.
    """
    for term in terms:
        if reading.value(term) is reading.value(source):
            return term
    plain = [t for t in terms if _is_plain(reading, between(source, t, last=True))]
    return plain[0] if len(plain) == 1 else None


def _is_plain(reading: Reading, nodes: tuple[fx.Node, ...]) -> bool:
    """Whether a shortcut does no more than pool, project, normalise and scale."""
    convs = [node for node in nodes if node in reading.convs]
    others = (n for n in nodes if n not in reading.convs and n not in reading.norms)
    plain = (
        n in reading.handed_on
        or isinstance(reading.module(n), nn.AvgPool2d | nn.MaxPool2d)
        or is_stored(n)
        or (n.target in PRODUCTS and len(_computed(n)) == 1)
        for n in others
    )
    return len(convs) <= 1 and all(plain)


def _computed(node: fx.Node) -> list[fx.Node]:
    """Returns the operands of a node that depend on the input."""
    return [a for a in node.args if isinstance(a, fx.Node) and not is_stored(a)]
