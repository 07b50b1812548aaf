"""Modules around parts that are not understood, which may be replaced whole.

A gate between two convolutions is a region by itself (``branches``). What a designer calls a block
is the convolutions before and behind it as well: the expansion, the filter, the gate and the
projection of a MobileNetV3. They merge with those of the blocks beside them too, so such a block is
no unit, only a run of units that is offered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from torch import fx

from trt_layermerge.core.unit import Branch
from trt_layermerge.tracing.assemble import Assembly
from trt_layermerge.tracing.branches import LONGEST, OpaqueBranch, arithmetic, strides
from trt_layermerge.tracing.pieces import Dominators, dominating, dominators, enclosed
from trt_layermerge.tracing.reading import shape_of


def wholes(
    assembly: Assembly, found: Sequence[OpaqueBranch], numbers: Sequence[int]
) -> tuple[Branch, ...]:
    """Returns every module with one map in and one out that holds such a part, and more.

    Args:
        assembly: What was understood of the network.
        found: The parts, by order of their ends.
        numbers: Index of the unit that each core is.
    """
    before = dominators(assembly.reading)
    parts = (
        _whole(assembly, before, found, numbers, run)
        for run in _modules(assembly)
        if len(run) <= LONGEST
    )
    return tuple(dict.fromkeys(part for part in parts if part is not None))


def _modules(assembly: Assembly) -> Iterator[range]:
    """Yields the cores of every module, by its first one, where they follow each other."""
    held: dict[str, list[int]] = {}
    for number, core in enumerate(assembly.cores):
        path = str(core.conv.target).split(".")[:-1]
        for depth in range(1, len(path) + 1):
            held.setdefault(".".join(path[:depth]), []).append(number)
    for cores in held.values():
        run = range(cores[0], cores[-1] + 1)
        if len(run) == len(cores):
            yield run


def _whole(
    assembly: Assembly,
    before: Dominators,
    found: Sequence[OpaqueBranch],
    numbers: Sequence[int],
    run: range,
) -> Branch | None:
    """Returns the units of a run of cores as one part, or None where they are none, or one known.

    Args:
        assembly: What was understood of the network.
        before: Dominators of every value.
        found: The parts that are not understood.
        numbers: Index of the unit that each core is.
        run: Cores of one module.
    """
    reading, cores = assembly.reading, assembly.cores
    starting = [part.source for part in found if part.first == run[0] and part.last <= run.stop]
    behind = [(k, part) for k, part in enumerate(found) if part.last == run.stop]
    ends = [(part.tail, part.last + k) for k, part in reversed(behind)]
    ends.append((cores[run[-1]].tail, numbers[run[-1]]))
    for source, (end, index) in product([cores[run[0]].source, *starting], ends):
        inside = _inside(before, source, end)
        if inside is None or [i for i, c in enumerate(cores) if c.conv in inside] != list(run):
            continue
        parts = [k for k, part in enumerate(found) if part.total in inside]
        units = sorted([*(numbers[i] for i in run), *(found[k].last + k for k in parts)])
        known = any(
            part.source is source and end in (part.tail, reading.value(part.branch))
            for part in found
        )
        if not parts or known or units != list(range(units[0], index + 1)):
            return None
        if not strides(source, end):
            return None
        shortcut = source.name if shape_of(source) == shape_of(end) else None
        macs = arithmetic(reading, inside)
        return Branch(units[0], index + 1, source.name, shortcut, (), macs)
    return None


def _inside(before: Dominators, source: fx.Node, end: fx.Node) -> tuple[fx.Node, ...] | None:
    """Returns what computes one value from another if these are its only ends, or None."""
    inside = enclosed(source, end) if source in dominating(before, end) else None
    return None if inside is None else (*inside, end)
