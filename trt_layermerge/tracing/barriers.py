"""Every place that no merge crosses, with the reason in words for the user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import fx

from trt_layermerge.core.unit import Barrier
from trt_layermerge.tracing.assemble import Assembly, strangers
from trt_layermerge.tracing.phrases import phrase
from trt_layermerge.tracing.residuals import Core


def find_barriers(assembly: Assembly, numbers: Sequence[int]) -> tuple[Barrier, ...]:
    """Returns one barrier for each place, in order; ``numbers`` tells the unit of each core."""
    reading = assembly.reading
    number = {core.conv: i for core, i in zip(assembly.cores, numbers, strict=True)}
    found: dict[fx.Node, Barrier] = {}
    for node, reason in reading.refused.items():
        found[node] = Barrier(node.name, f"{node.target}: {reason}")
    tails = {core.tail for core in assembly.cores}
    for node, reason in assembly.refused.items():
        if any(reading.value(term) in tails for term in node.all_input_nodes):
            found[node] = Barrier(node.name, f"the addition {node.name} is no residual: {reason}")
    for node, barrier in _cuts(assembly, number):
        found.setdefault(node, barrier)
    return tuple(found[node] for node in sorted(found, key=reading.order.__getitem__))


def _cuts(assembly: Assembly, number: dict[fx.Node, int]) -> Iterator[tuple[fx.Node, Barrier]]:
    """Yields the barrier behind every unit that is not linked to the next one."""
    for first, second, linked in zip(
        assembly.cores, assembly.cores[1:], assembly.linked, strict=False
    ):
        if not linked:
            node, reason = _cut(assembly, first, second)
            yield node, Barrier(node.name, reason, number[first.conv])


def _cut(assembly: Assembly, first: Core, second: Core) -> tuple[fx.Node, str]:
    """Returns where and why no merge goes from one unit to the next."""
    reading, name = assembly.reading, first.conv.target
    others = strangers(assembly, first, second)
    if len(others) == 1:
        (node,) = others
        also = "also feeds" if second.source is first.tail else "is followed by"
        return node, f"{name} {also} {phrase(reading, node)}, which no merge crosses"
    if not others:
        return first.tail, f"the output of {name} is not used"
    uses = ", ".join(phrase(reading, node) for node in others[:3])
    uses += ", …" if len(others) > 3 else ""
    return (
        first.tail,
        f"the output of {name} is used in {len(others)} places that are not the paths of one "
        f"residual: {uses}",
    )
