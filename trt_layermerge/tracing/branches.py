"""Residual branches that are not understood: where they begin and end, and what they are.

Such a branch stands between one value and an addition that joins it with what is computed from the
same value beside it. Nothing inside is read from outside, so whatever it does, it can be left out
or replaced as a whole (LayerMerge, ICML 2024, knows branches of convolutions only).

A value *dominates* another if every way from the inputs leads through it. The source of a branch is
the last value that dominates its addition (Cooper, Harvey and Kennedy, 2001, on a graph without
circles: one pass).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from torch import fx, nn

from trt_layermerge.core.conv import PieceSpec, Spec
from trt_layermerge.tracing.assemble import Assembly
from trt_layermerge.tracing.pieces import between, piece_spec
from trt_layermerge.tracing.reading import Reading, shape_of


@dataclass(frozen=True)
class OpaqueBranch:
    """A branch with something inside that no merge crosses.

    Attributes:
        source: The value from which branch and shortcut start.
        branch: The value of the branch.
        shortcut: The value beside it; ``source`` where it is an identity.
        total: Their sum.
        tail: The activation behind it that alone reads it, or ``total``.
        activation: Canonical name of that activation, or None.
        inside: Everything between source and total, in order.
        spec: The same with total and activation.
        remains: What computes the shortcut from the source; empty for an identity.
        first: Number of the first core inside; that of the next one where there is none.
        last: Behind the last one.
    """

    source: fx.Node
    branch: fx.Node
    shortcut: fx.Node
    total: fx.Node
    tail: fx.Node
    activation: str | None
    inside: tuple[fx.Node, ...]
    spec: PieceSpec
    remains: tuple[Spec, ...]
    first: int
    last: int

    @property
    def name(self) -> str:
        """What to call it: the module that all of its layers lie in, or its addition."""
        paths = [str(n.target).split(".") for n in self.inside if n.op == "call_module"]
        common = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
        name = ".".join(parts[0] for parts in common)
        return name if name and name.split(".") not in paths else self.total.name


def opaque_branches(reading: Reading, assembly: Assembly) -> tuple[OpaqueBranch, ...]:
    """Returns the branches that end at additions that are no understood residual, in order.

    Args:
        reading: The traced network.
        assembly: What was understood of it.
    """
    dominators = _dominators(reading)
    found = (
        _branch(reading, assembly, dominators, total)
        for total in sorted(assembly.refused, key=reading.order.__getitem__)
    )
    return tuple(branch for branch in found if branch is not None)


def _branch(
    reading: Reading,
    assembly: Assembly,
    dominators: dict[fx.Node, fx.Node | None],
    total: fx.Node,
) -> OpaqueBranch | None:
    """Returns the branch that ends at an addition, or None where there is none to leave out."""
    source = dominators.get(total)
    terms = [node for node in total.args if isinstance(node, fx.Node)]
    if source is None or len(terms) != 2 or len(shape_of(source)) != 4:
        return None
    inside = between(source, total)
    if not all(user in inside or user is total for node in inside for user in node.users):
        return None
    shortcut = _shortcut(reading, source, terms)
    if shortcut is None:
        return None
    branch = terms[1] if shortcut is terms[0] else terms[0]
    identity = reading.value(shortcut) is reading.value(source)
    users = reading.users(total)
    acts = len(users) == 1 and users[0] in reading.activations
    tail = users[0] if acts else total
    numbers = [i for i, core in enumerate(assembly.cores) if core.conv in inside]
    first = min(numbers, default=_cores_before(reading, assembly, total))
    last = first + len(numbers)
    if numbers != list(range(first, last)) or not _stands_apart(assembly, first, last):
        return None
    return OpaqueBranch(
        source=source,
        branch=branch,
        shortcut=source if identity else shortcut,
        total=total,
        tail=tail,
        activation=reading.activations[tail] if acts else None,
        inside=inside,
        spec=piece_spec(reading, source, tail),
        remains=() if identity else (_remainder(reading, assembly, source, shortcut),),
        first=first,
        last=last,
    )


def _stands_apart(assembly: Assembly, first: int, last: int) -> bool:
    """Whether no run of linked units crosses an end of a branch."""
    ends = [end - 1 for end in (first, last) if 0 < end < len(assembly.cores)]
    return not any(assembly.linked[end] for end in ends)


def _remainder(reading: Reading, assembly: Assembly, source: fx.Node, shortcut: fx.Node) -> Spec:
    """Returns what computes a shortcut as something to be timed: a unit, or a piece."""
    for core in assembly.cores:
        if core.tail is shortcut and core.source is reading.value(source):
            return core.spec
    return piece_spec(reading, source, shortcut)


def _cores_before(reading: Reading, assembly: Assembly, node: fx.Node) -> int:
    order = reading.order
    return sum(order[core.conv] < order[node] for core in assembly.cores)


def _shortcut(reading: Reading, source: fx.Node, terms: Iterable[fx.Node]) -> fx.Node | None:
    """Returns the term that remains without the branch.

    The source itself, or what comes of it by pooling, normalising and at most one convolution, as
    in a projection.
    """
    for term in terms:
        if reading.value(term) is reading.value(source):
            return term
    plain = [t for t in terms if _is_plain(reading, between(source, t, last=True))]
    return plain[0] if len(plain) == 1 else None


def _is_plain(reading: Reading, nodes: tuple[fx.Node, ...]) -> bool:
    """Whether a shortcut does no more than pool, project and normalise."""
    convs = [node for node in nodes if node in reading.convs]
    others = (n for n in nodes if n not in reading.convs and n not in reading.norms)
    pooled = (
        n in reading.handed_on or isinstance(reading.module(n), nn.AvgPool2d | nn.MaxPool2d)
        for n in others
    )
    return len(convs) <= 1 and all(pooled)


def _dominators(reading: Reading) -> dict[fx.Node, fx.Node | None]:
    """Returns the last value before each that dominates it; None where that is no value.

    Parameters and constants are no inputs.
    """
    found: dict[fx.Node, fx.Node | None] = {}
    depth: dict[fx.Node, int] = {}

    def meet(a: fx.Node | None, b: fx.Node | None) -> fx.Node | None:
        while a is not b:
            if a is None or b is None:
                return None
            if depth[a] >= depth[b]:
                a = found[a]
            else:
                b = found[b]
        return a

    for node in reading.order:
        before = [n for n in node.all_input_nodes if n in depth]
        if node.op != "placeholder" and not before:
            continue  # a constant
        parent: fx.Node | None = before[0] if before else None
        for other in before[1:]:
            parent = meet(parent, other)
        found[node] = parent
        depth[node] = 0 if parent is None else depth[parent] + 1
    return found
