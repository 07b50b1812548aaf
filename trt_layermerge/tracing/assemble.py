"""From single nodes to units, segments and residuals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx

from trt_layermerge.tracing.reading import Reading
from trt_layermerge.tracing.residuals import Core, Draft, is_outermost, misalignment, read_residual


@dataclass
class Assembly:
    """What was understood of a network.

    Attributes:
        reading: The network.
        cores: The units, in the order of execution; projections are not among them.
        drafts: The residuals, by order of their additions.
        linked: For every unit but the last, whether the next one follows without a barrier.
        refused: Additions that are no understood residual, with the reason.
    """

    reading: Reading
    cores: list[Core] = field(default_factory=list)
    drafts: list[Draft] = field(default_factory=list)
    linked: list[bool] = field(default_factory=list)
    refused: dict[fx.Node, str] = field(default_factory=dict)

    def span(self, draft: Draft) -> tuple[int, int]:
        """Returns start and end (exclusive) of a residual among the units."""
        return self.cores.index(draft.first), self.cores.index(draft.last) + 1


def assemble(reading: Reading) -> Assembly:
    """Returns units and residuals such that every residual lies in one run of linked units.

    A residual that does not is given up, and everything is read again without it, until all fit.
    """
    refused: dict[fx.Node, str] = {}
    while True:
        assembly = _sweep(reading, refused)
        assembly.linked = [
            second.source is first.tail and not strangers(assembly, first, second)
            for first, second in zip(assembly.cores, assembly.cores[1:], strict=False)
        ]
        unfit = dict(_unfit(assembly))
        if not unfit:
            return assembly
        refused.update(unfit)


def _sweep(reading: Reading, refused: dict[fx.Node, str]) -> Assembly:
    """Reads all nodes once, in the order of execution."""
    assembly = Assembly(reading, refused=dict(refused))
    tails: dict[fx.Node, Core] = {}
    for node in reading.order:
        if node in reading.convs:
            core = Core(node, reading.convs[node], reading.operand(node))
            assembly.cores.append(core)
            tails[node] = core
        elif node in reading.additions:
            if is_outermost(reading, node) and node not in refused:
                _take_residual(assembly, tails, node)
        elif node in reading.norms or node in reading.activations:
            _absorb(reading, tails, node)
    return assembly


def _absorb(reading: Reading, tails: dict[fx.Node, Core], node: fx.Node) -> None:
    """Fuses a normalisation or an activation behind the core whose last value it alone reads."""
    value = reading.operand(node)
    core = tails.get(value)
    if core is None or reading.users(value) != (node,):
        return
    if node in reading.norms and value is core.conv:
        core.norm = node
    elif node in reading.activations and core.act is None:
        core.act, core.activation = node, reading.activations[node]
    else:
        return
    del tails[value]
    tails[node] = core


def _take_residual(assembly: Assembly, tails: dict[fx.Node, Core], node: fx.Node) -> None:
    """Fuses an addition behind the core that ends there, or notes why that cannot be."""
    draft = read_residual(assembly.reading, tails, node)
    if isinstance(draft, str):
        assembly.refused[node] = draft
        return
    for path in draft.paths:
        if path.core is not None:
            assembly.cores.remove(path.core)
            del tails[path.core.tail]
    del tails[draft.last.tail]
    draft.last.total = node
    tails[node] = draft.last
    assembly.drafts.append(draft)


def strangers(assembly: Assembly, first: Core, second: Core) -> tuple[fx.Node, ...]:
    """Returns what reads the output of a unit beside the next unit and known shortcuts."""
    known = {second.conv}
    for draft in assembly.drafts:
        if draft.first is second:
            known |= draft.readers
    return tuple(node for node in assembly.reading.users(first.tail) if node not in known)


def _unfit(assembly: Assembly) -> Iterator[tuple[fx.Node, str]]:
    """Yields the additions whose residual cannot stay, with the reason."""
    spans: list[tuple[int, int]] = []
    for draft in assembly.drafts:
        start, end = assembly.span(draft)
        if start >= end or not all(assembly.linked[start : end - 1]):
            yield draft.total, "something inside its branch cannot be merged across"
        elif any(_cross((start, end), other) for other in spans):
            yield draft.total, "its shortcut overlaps another one in part"
        else:
            branch = [core.spec for core in assembly.cores[start:end]]
            projections = [p.core.spec if p.core else None for p in draft.paths]
            reason = misalignment(branch, projections)
            if reason is not None:
                yield draft.total, reason
            spans.append((start, end))


def _cross(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two half-open ranges overlap without one containing the other."""
    (a, b), (c, d) = sorted((first, second))
    return a < c < b < d
