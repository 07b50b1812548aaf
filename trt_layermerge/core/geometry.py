"""What a block becomes once its padding is hoisted: which steps run, and whether they line up.

Inside a merged block nothing is padded. All zeros stand at the block's input,

    P = Σ p_l · Π strides of the kept units before l

so that every value in between carries a margin, which the later steps consume. A shortcut reads
the value at its residual's start. With branch geometry (extent E, stride S, padding p) and shortcut
geometry (extent E', stride S, padding p'), its first tap lies ``p − p'`` behind the branch's first
tap, whatever the margin is: output i of the branch covers i·S … i·S + E − 1 of the margined value,
and the shortcut covers i·S + p − p' … i·S + p − p' + E' − 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from trt_layermerge.core.conv import ConvSpec, Pair, compose
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import Block, Residual, Shortcut
from trt_layermerge.errors import UnsupportedModelError

if TYPE_CHECKING:
    from trt_layermerge.core.candidate import Candidate

ONE: Pair = (1, 1)


@dataclass(frozen=True, slots=True)
class Apply:
    """A kept unit runs, without padding and without activation."""

    unit: int


@dataclass(frozen=True, slots=True)
class Open:
    """A residual begins: its shortcuts will read the present value."""

    residual: Residual


@dataclass(frozen=True, slots=True)
class Close:
    """A residual ends: its shortcuts are added, or replace a branch that keeps nothing.

    Attributes:
        residual: The residual.
        empty: Whether the branch keeps no convolution and counts as zero.
        channels: Channels that the shortcuts read.
        extent: Rows and columns that one output of the branch sees.
        stride: Step of the branch.
        offsets: For each shortcut, rows and columns between the branch's first tap and its own.
    """

    residual: Residual
    empty: bool
    channels: int
    extent: Pair
    stride: Pair
    offsets: tuple[Pair, ...]


Step: TypeAlias = Apply | Open | Close


@dataclass(frozen=True, slots=True)
class Composition:
    """The steps of a block in order, and the convolution they amount to.

    Attributes:
        steps: What runs.
        spec: Bare geometry of the composition, with as many groups as it allows; None where the
            block hands on its input untouched.
    """

    steps: tuple[Step, ...]
    spec: ConvSpec | None


class _Refusal(Exception):
    """Carries the reason why a block cannot merge."""


def composition(graph: LayerGraph, block: Block, kept: tuple[int, ...]) -> Composition:
    """Returns the steps of a block that keeps these units, and their joint geometry.

    Args:
        graph: The traced network.
        block: The units.
        kept: Indices of the kept ones in the graph, rising; may be empty.

    Raises:
        UnsupportedModelError: If the kept units and the shortcuts inside do not line up exactly.
    """
    try:
        return _compose_block(graph, block, kept)
    except _Refusal as refusal:
        names = f"{graph.units[block.start].name} … {graph.units[block.end - 1].name}"
        raise UnsupportedModelError(
            f"units {block.start} to {block.end - 1} ({names}) cannot become one block: {refusal}; "
            "leave this candidate out"
        ) from None


def composition_refusal(graph: LayerGraph, candidate: Candidate) -> str | None:
    """Returns why a block's kept units do not merge into what is stated, or None if they do.

    Needs no weights, as ``chain_refusal``.
    """
    return _refusal(_check_composition, graph, candidate)


def chain_refusal(graph: LayerGraph, candidate: Candidate) -> str | None:
    """Returns why new convolutions cannot take a block's place, or None if they can."""
    return _refusal(_check_chain, graph, candidate)


def _refusal(
    check: Callable[[LayerGraph, Candidate], None], graph: LayerGraph, candidate: Candidate
) -> str | None:
    try:
        _check_block(graph, candidate.block)
        check(graph, candidate)
    except _Refusal as refusal:
        return str(refusal)
    return None


def _check_block(graph: LayerGraph, block: Block) -> None:
    """Refuses a block that leaves its segment or overlaps a residual in part."""
    start, end = block.start, block.end
    if graph.branch_at(block) or graph.bridge_at(block):
        return
    if not any(s.start <= start < end <= s.end for s in graph.segments):
        raise _Refusal("it is not within one segment")
    for r in graph.residuals:
        if r.start < start < r.end < end or start < r.start < end < r.end:
            raise _Refusal(f"it overlaps the residual over units {r.start} to {r.end - 1} in part")


def _check_composition(graph: LayerGraph, candidate: Candidate) -> None:
    """Refuses a candidate whose stated convolution is not what its units compose to."""
    block, found = candidate.block, _compose_block(graph, candidate.block, candidate.kept)
    (channels_in, size_in), (channels, size) = graph.ends(block)
    merged, stated = found.spec, candidate.convs
    if merged is None:
        if stated:
            raise _Refusal(f"nothing remains of it, but {stated[0]} is stated")
        # A branch leaves its shortcut behind, which has the shape of their sum.
        if (channels_in, size_in) != (channels, size) and not graph.branch_at(block):
            raise _Refusal("an identity cannot change the shape of the map")
        return
    if (merged.in_channels, merged.out_channels) != (channels_in, channels):
        raise _Refusal("the kept units do not produce the channels of the block")
    if merged.out_size != size:
        raise _Refusal(f"the kept units produce a map of {merged.out_size}, not {size}")
    if len(stated) != 1 or replace(stated[0].bare(), groups=merged.groups) != merged:
        raise _Refusal(f"it composes to {merged}, which is not the stated convolution")
    if merged.groups % stated[0].groups:
        raise _Refusal(f"{merged.groups} groups do not refine the stated {stated[0].groups}")


def _check_chain(graph: LayerGraph, candidate: Candidate) -> None:
    """Refuses new convolutions that do not lead from the block's input to its output."""
    (channels, size), last = graph.ends(candidate.block)
    if not candidate.convs:
        raise _Refusal(f"a candidate of kind {candidate.kind} needs at least one convolution")
    for spec in candidate.convs:
        if (spec.in_channels, (spec.height, spec.width)) != (channels, size):
            raise _Refusal(f"{spec} is not fed a map of {channels} channels, {size}")
        if spec.in_channels % spec.groups or spec.out_channels % spec.groups:
            raise _Refusal(f"the channels of {spec} cannot be split into {spec.groups} groups")
        channels, size = spec.out_channels, spec.out_size
    if (channels, size) != last:
        raise _Refusal(
            f"its convolutions produce {channels} channels of {size}, the block {last[0]} of "
            f"{last[1]}"
        )


def _compose_block(graph: LayerGraph, block: Block, kept: tuple[int, ...]) -> Composition:
    if any(not block.start <= k < block.end for k in kept) or list(kept) != sorted(set(kept)):
        raise _Refusal(f"the kept units {kept} are not units of it in order")
    branch = graph.branch_at(block)
    if branch is not None:
        if kept:
            raise _Refusal("something in this branch cannot merge: it is left out whole, or stays")
        if branch.shortcut is None:
            raise _Refusal("without it there is nothing of the shape that it puts out")
        return Composition((), None)
    inside = graph.residuals_inside(block.start, block.end)
    steps: list[Step] = []
    outer: list[ConvSpec | None] = []
    spec: ConvSpec | None = None
    for unit in range(block.start, block.end):
        for residual in sorted((r for r in inside if r.start == unit), key=lambda r: -r.end):
            steps.append(Open(residual))
            outer.append(spec)
            spec = None
        if unit in kept:
            steps.append(Apply(unit))
            spec = _join(spec, graph.conv_unit(unit).spec.bare())
        for residual in (r for r in inside if r.end == unit + 1):
            close, fused = _close(graph, residual, spec)
            steps.append(close)
            spec = _join(outer.pop(), fused)
    return Composition(tuple(steps), spec)


def _join(first: ConvSpec | None, second: ConvSpec | None) -> ConvSpec | None:
    if first is None or second is None:
        return second if first is None else first
    try:
        return compose(first, second)
    except ValueError as error:
        raise _Refusal(str(error)) from None


def _close(
    graph: LayerGraph, residual: Residual, branch: ConvSpec | None
) -> tuple[Close, ConvSpec | None]:
    """Returns how the shortcuts join a branch, and what branch and shortcuts fuse into."""
    channels = graph.conv_unit(residual.start).spec.in_channels
    paths = [_shortcut_spec(graph, residual, s) for s in residual.shortcuts]
    if branch is None and len(paths) == 1 and residual.shortcuts[0].identity:
        return Close(residual, True, channels, ONE, ONE, ((0, 0),)), None
    whole = max(paths, key=lambda p: p.extent) if branch is None else branch
    offsets = tuple(_offset(residual, whole, path) for path in paths)
    fused = replace(whole, groups=math.gcd(whole.groups, *(p.groups for p in paths)))
    close = Close(residual, branch is None, channels, whole.extent, whole.stride, offsets)
    return close, fused


def _shortcut_spec(graph: LayerGraph, residual: Residual, shortcut: Shortcut) -> ConvSpec:
    """Returns a shortcut as a convolution: the projection, or one tap on each channel."""
    if shortcut.spec is not None:
        return shortcut.spec.bare()
    first = graph.conv_unit(residual.start).spec
    channels, size = first.in_channels, (first.height, first.width)
    return ConvSpec(channels, channels, ONE, ONE, (0, 0, 0, 0), ONE, channels, *size)


def _offset(residual: Residual, branch: ConvSpec, path: ConvSpec) -> Pair:
    """Returns how far the first tap of a shortcut lies behind that of its branch."""
    where = f"the shortcut over units {residual.start} to {residual.end - 1}"
    if path.stride != branch.stride:
        raise _Refusal(f"{where} steps by {path.stride}, its branch by {branch.stride}")
    if (path.out_channels, path.out_size) != (branch.out_channels, branch.out_size):
        raise _Refusal(f"{where} and its branch produce different shapes")
    offset = (branch.padding[0] - path.padding[0], branch.padding[1] - path.padding[1])
    for axis in (0, 1):
        if offset[axis] < 0 or offset[axis] + path.extent[axis] > branch.extent[axis]:
            raise _Refusal(f"{where} reaches beyond what its branch sees")
        steps = (offset[axis], path.dilation[axis] if path.kernel[axis] > 1 else 0)
        if any(step % branch.dilation[axis] for step in steps):
            raise _Refusal(f"{where} does not lie on the dilated taps of its branch")
    return offset
