"""Residual additions: which convolution branch ends there, and which shortcuts join it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

from torch import fx

from trt_layermerge.core.conv import ConvSpec, compose
from trt_layermerge.tracing.phrases import phrase
from trt_layermerge.tracing.pieces import behind
from trt_layermerge.tracing.reading import Reading


@dataclass(eq=False)
class Core:
    """A convolution and what is fused behind it, while the graph is read.

    Attributes:
        conv: The convolution.
        spec: Its bare geometry.
        source: The value that it reads.
        norm: The batch normalisation behind it, if any.
        total: The residual addition that ends here, if any.
        act: The activation behind all of these, if any.
        activation: Canonical name of the activation.
    """

    conv: fx.Node
    spec: ConvSpec
    source: fx.Node
    norm: fx.Node | None = None
    total: fx.Node | None = None
    act: fx.Node | None = None
    activation: str | None = None

    @property
    def branch(self) -> fx.Node:
        """The value before any addition."""
        return self.norm or self.conv

    @property
    def sum(self) -> fx.Node:
        """The value before the activation."""
        return self.total or self.branch

    @property
    def tail(self) -> fx.Node:
        """The last value."""
        return self.act or self.sum


@dataclass(frozen=True)
class Path:
    """One shortcut: a projection, a normalisation, or nothing at all; ``out`` is its value."""

    core: Core | None
    norm: fx.Node | None
    out: fx.Node


@dataclass(frozen=True)
class Draft:
    """A residual in terms of cores.

    Attributes:
        total: The (outermost) addition.
        first: The core that reads the source.
        last: The core whose branch ends at the addition.
        paths: The shortcuts.
        readers: Every node through which the shortcuts read the source.
    """

    total: fx.Node
    first: Core
    last: Core
    paths: tuple[Path, ...]
    readers: frozenset[fx.Node]


Tails = Mapping[fx.Node, Core]


def is_outermost(reading: Reading, node: fx.Node) -> bool:
    """Whether an addition is not itself a term of another one alone."""
    users = reading.users(node)
    return len(users) != 1 or users[0] not in reading.additions


def read_residual(reading: Reading, tails: Tails, total: fx.Node) -> Draft | str:
    """Returns the residual that ends at an addition, or why it is none.

    Args:
        reading: The network.
        tails: Core by its last value so far, for everything executed before.
        total: An outermost addition; the additions nested in it are taken together with it.
    """
    tree, terms = _flatten(reading, total)
    if len(set(terms)) < len(terms):
        return "one value is added to itself"
    branches: list[Core] = []
    paths: list[Path] = []
    sources: dict[fx.Node, None] = {}
    for term in terms:
        core = tails.get(term)
        alone = set(reading.users(term)) <= tree
        if core is not None and term is core.branch and alone:
            branches.append(core)
        elif term in reading.norms and alone:
            paths.append(Path(None, term, term))
            sources[reading.operand(term)] = None
        else:
            paths.append(Path(None, None, term))
            sources[term] = None
    if not branches or len(sources) > 1:
        return _misfit(reading, tails, [p.out for p in paths if p.norm is None])
    for source in sources or dict.fromkeys(core.source for core in branches):
        ends = _main_branch(tails, branches, source)
        if ends is not None:
            first, last = ends
            paths += [Path(c, c.norm, c.branch) for c in branches if c is not last]
            readers = tree | {node for p in paths for node in _entries(p)}
            return Draft(total, first, last, tuple(paths), frozenset(readers))
    return _walled(reading, tails, branches, tuple(sources))


def misalignment(units: list[ConvSpec], projections: list[ConvSpec | None]) -> str | None:
    """Returns why shortcuts cannot be taps of the convolution that a branch merges into, or None.

    Args:
        units: Geometry of the branch.
        projections: Geometry of each shortcut, None for one without a convolution.
    """
    merged = reduce(compose, units)
    for spec in projections:
        stride, taps = ((1, 1), ({0}, {0})) if spec is None else (spec.stride, _taps(spec))
        if stride != merged.stride:
            return f"the branch has stride {merged.stride} in all, but its shortcut {stride}"
        if not all(a <= b for a, b in zip(taps, _taps(merged), strict=True)):
            return "the shortcut reads pixels that the branch beside it does not see"
    return None


def _flatten(reading: Reading, total: fx.Node) -> tuple[set[fx.Node], list[fx.Node]]:
    """Returns every addition of a tree, and the values that it sums, in order."""
    tree, terms = {total}, []
    for operand in total.args:
        assert isinstance(operand, fx.Node)  # both sides of an addition are values
        value = reading.value(operand)
        if value in reading.additions and len(reading.users(value)) == 1:
            inner, values = _flatten(reading, value)
            tree |= inner
            terms += values
        else:
            terms.append(value)
    return tree, terms


def _main_branch(tails: Tails, branches: list[Core], source: fx.Node) -> tuple[Core, Core] | None:
    """Returns first and last core of the branch beside which all others are shortcuts.

    Where every branch is a single convolution, the one with the most taps, then the most work.
    """
    longer = [core for core in branches if core.source is not source]
    if len(longer) > 1:
        return None
    if not longer:
        main = max(branches, key=lambda c: (c.spec.kernel[0] * c.spec.kernel[1], c.spec.macs))
        return main, main
    core: Core | None = longer[0]
    while core is not None and core.source is not source:
        core = tails.get(core.source)
    return None if core is None else (core, longer[0])


def _entries(path: Path) -> tuple[fx.Node, ...]:
    """Returns the node through which a shortcut reads the source, if it is not the addition."""
    if path.core is not None:
        return (path.core.conv,)
    return () if path.norm is None else (path.norm,)


def _taps(spec: ConvSpec) -> tuple[set[int], set[int]]:
    """Returns rows and columns, relative to the output pixel, that a convolution reads."""
    rows, columns = (
        {dilation * i - before for i in range(kernel)}
        for kernel, dilation, before in zip(
            spec.kernel, spec.dilation, spec.padding[:2], strict=True
        )
    )
    return rows, columns


def _walled(
    reading: Reading, tails: Tails, branches: list[Core], sources: tuple[fx.Node, ...]
) -> str:
    """Returns why branches do not lead back to the source of the other paths."""
    starts = sources or tuple(core.source for core in branches)
    for branch in branches:
        core: Core | None = branch
        while core is not None and core.source not in starts:
            wall, core = core.source, tails.get(core.source)
            if core is None and not behind(wall).keys().isdisjoint(starts):
                return f"its branch goes through {phrase(reading, wall)}, which no merge crosses"
    return "the paths that are added here do not start from one and the same value"


def _misfit(reading: Reading, tails: Tails, terms: list[fx.Node]) -> str:
    """Returns why the terms of an addition are no branch and its shortcuts."""
    alone = [t for t in terms if len(reading.users(t)) == 1]
    acted = [f"an activation ({t.name})" for t in alone if t in reading.activations]
    walls = [
        phrase(reading, t)
        for t in alone
        if t not in tails and any(reading.value(n) in tails for n in t.all_input_nodes)
    ]
    for what in acted + walls:
        return f"{what} stands between a convolution and this addition"
    return "it does not join one branch of convolutions with shortcuts around that branch"
