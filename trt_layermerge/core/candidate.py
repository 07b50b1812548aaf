"""A block of units, and one way to replace it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple, TypeAlias

from trt_layermerge.core.conv import AddSpec, ConvSpec, Spec, compose, spec_from_json
from trt_layermerge.core.geometry import composition
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import Block, Branch, ConvUnit, Residual
from trt_layermerge.errors import UnsupportedModelError

Widths: TypeAlias = tuple[tuple[str, int], ...]
"""Streams at less than their full width, by name, and how many channels they have."""

CandidateKey: TypeAlias = tuple[int, int, str, tuple[int, ...], tuple[Spec, ...], Widths]


class Change(NamedTuple):
    """Units ``start`` to ``end`` (half open) go; of those ``kept``, ``convs`` convolutions come."""

    start: int
    end: int
    kind: str
    kept: tuple[int, ...]
    convs: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to replace a block.

    Attributes:
        block: The units it replaces.
        kind: Name of its kind (``kinds``): ``compose`` (kept convolutions, merged exactly),
            ``fit`` (new convolutions, fitted), ``identity`` (nothing but the shortcut remains),
            ``narrow`` (fewer channels inside).
        kept: Indices of the kept units; empty where nothing is composed of any.
        convs: Geometry of what runs in the block's place once merged, in order, each with the
            activation behind it; the residual flag stands on the last one.
        extras: What else the block's place costs: projections of a residual that stays open, an
            addition without a convolution before it, or a branch that stays as it is.
        inside: What of ``extras`` other candidates count: the units inside such a branch, as they
            are. Its latency is that of the branch less theirs.
        activation: Activation behind the block (after the addition, if one ends there), or None.
        original: Whether the block stays exactly as it was.
        widths: Streams that it reads or puts out at less than their full width.
    """

    block: Block
    kind: str
    kept: tuple[int, ...]
    convs: tuple[ConvSpec, ...]
    extras: tuple[Spec, ...] = ()
    inside: tuple[Spec, ...] = ()
    activation: str | None = None
    original: bool = False
    widths: Widths = ()

    @property
    def spec(self) -> ConvSpec | None:
        """Geometry of the merged convolution, or None for a pure identity."""
        return self.convs[0] if self.convs else None

    @property
    def costs(self) -> tuple[Spec, ...]:
        """Everything that has to be timed for this candidate."""
        return self.convs + self.extras

    @property
    def key(self) -> CandidateKey:
        """What tells this candidate from every other one of the same graph."""
        block = self.block
        return block.start, block.end, self.kind, self.kept, self.convs, self.widths

    @property
    def change(self) -> Change:
        """What it changes, without geometry."""
        block, convs = self.block, len(self.convs)
        return Change(block.start, block.end, self.kind, self.kept, convs)

    @property
    def nonlinear(self) -> int:
        """Number of convolutions with an activation behind them."""
        return sum(spec.activation is not None for spec in self.convs)

    @property
    def activations(self) -> int:
        """Number of activations, those behind no convolution included."""
        inside = sum(spec.activation is not None for spec in self.convs[:-1])
        return inside + (self.activation is not None)

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready mapping that ``from_json`` reads back."""
        return {
            "start": self.block.start,
            "end": self.block.end,
            "kind": self.kind,
            "kept": list(self.kept),
            "spec": self.spec.to_json() if self.spec else None,
            "convs": [s.to_json() for s in self.convs],
            "extras": [s.to_json() for s in self.extras],
            **({"inside": [s.to_json() for s in self.inside]} if self.inside else {}),
            "activation": self.activation,
            "original": self.original,
            **({"widths": dict(self.widths)} if self.widths else {}),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Candidate:
        """Returns the candidate that ``to_json`` wrote."""
        convs = tuple(spec_from_json(s) for s in data["convs"])
        if not all(isinstance(s, ConvSpec) for s in convs):
            raise ValueError("the convs of a candidate must be convolutions")
        return Candidate(
            block=Block(int(data["start"]), int(data["end"])),
            kind=str(data["kind"]),
            kept=tuple(int(i) for i in data["kept"]),
            convs=tuple(s for s in convs if isinstance(s, ConvSpec)),
            extras=tuple(spec_from_json(s) for s in data["extras"]),
            inside=tuple(spec_from_json(s) for s in data.get("inside", ())),
            activation=data["activation"],
            original=bool(data["original"]),
            widths=widths_from_json(data),
        )

    def __str__(self) -> str:
        """Returns a short form such as ``compose 3:5 16>16 k5x5 @16x16 relu``."""
        body = " + ".join(str(s) for s in self.convs) or "-"
        return f"{self.kind} {self.block.start}:{self.block.end} {body}"


def widths_from_json(data: dict[str, Any]) -> Widths:
    """Returns the widths in a mapping; none where it tells of none."""
    return tuple(sorted((str(k), int(v)) for k, v in data.get("widths", {}).items()))


def block_activation(graph: LayerGraph, block: Block) -> str | None:
    """Returns the activation that stands at the end of a block that runs a convolution.

    The original one where there is one. Where a block of two or more units ends linearly, the last
    activation inside it moves to its end, after the addition if one ends there. Those of a gate
    that stands inside do not: what comes out of a block is no share of something.
    """
    last = block.end
    while last > block.start:
        activation = graph.units[last - 1].activation
        if activation is not None or len(block) == 1:
            return activation
        region = graph.branch_ending_at.get(last)
        gate = region is not None and region.macs is not None and last < block.end
        last = region.start if region is not None and gate else last - 1
    return None


def open_residual(graph: LayerGraph, candidate: Candidate) -> Residual | None:
    """Returns the residual whose addition stands behind what runs in a block's place.

    It began before the block, or over it and stays beside it (``finish``).
    """
    block = candidate.block
    if candidate.convs and candidate.convs[-1].residual:
        return graph.residual_ending_at.get(block.end)
    return graph.open_residual(block.start, block.end)


def finish(
    graph: LayerGraph,
    block: Block,
    kind: str,
    kept: tuple[int, ...],
    convs: tuple[ConvSpec, ...],
    *,
    intact: bool = False,
) -> Candidate:
    """Returns a candidate with activation, residual flag and extra costs worked out.

    Args:
        graph: The traced network.
        block: What is replaced.
        kind: Name of the kind.
        kept: Indices of the kept units, rising.
        convs: Convolutions in order, the last one bare; empty means that only the shortcut
            remains.
        intact: Whether what stands around the convolutions stays as it is: the activation behind
            the block, if there is one, and a residual over it, beside it.
    """
    if intact:
        activation = graph.units[block.end - 1].activation
        residual = graph.residual_ending_at.get(block.end)
    else:
        activation = block_activation(graph, block)
        residual = graph.open_residual(block.start, block.end)
    extras: tuple[Spec, ...] = residual.projections if residual else ()
    if convs:
        last = replace(convs[-1], activation=activation, residual=residual is not None)
        convs = (*convs[:-1], last)
    elif residual:
        _, (channels, (rows, columns)) = graph.ends(block)
        extras = (*extras, AddSpec(channels, rows, columns, activation))
    else:
        activation = None
    return Candidate(block, kind, kept, convs, extras, activation=activation)


def original_candidate(graph: LayerGraph, index: int) -> Candidate:
    """Returns the candidate that leaves one unit as it is (a residual of its own is fused)."""
    block, unit = Block(index, index + 1), graph.units[index]
    if isinstance(unit, ConvUnit):
        spec = merged_spec(graph, block, (index,))
        return replace(finish(graph, block, "compose", (index,), (spec,)), original=True)
    branch = graph.branch_ending_at[index + 1]
    inside = _untouched(graph, branch.start, index)
    kept, extras = (index,), (unit.spec,)
    return Candidate(block, "compose", kept, (), extras, inside, unit.activation, original=True)


def left_out(graph: LayerGraph, branch: Branch, kind: str) -> Candidate:
    """Returns the candidate that leaves out a whole branch; its shortcut remains.

    The activation behind the addition stays where the shortcut computes something. Behind an
    identity it goes: what comes in has passed one already.

    Args:
        graph: The traced network.
        branch: What is left out; something remains.
        kind: Name of the kind.
    """
    activation = graph.units[branch.end - 1].activation if branch.remains else None
    block = Block(branch.start, branch.end)
    return Candidate(block, kind, (), (), branch.remains, activation=activation)


def _untouched(graph: LayerGraph, start: int, end: int) -> tuple[Spec, ...]:
    """Returns what ``units[start:end]`` run as they are, a branch inside as one piece."""
    found: list[Spec] = []
    while end > start:
        branch = graph.branch_ending_at.get(end)
        candidate = original_candidate(graph, end - 1)
        found += candidate.costs
        end = end - 1 if branch is None else branch.start
    return tuple(found)


def merged_spec(graph: LayerGraph, block: Block, kept: tuple[int, ...]) -> ConvSpec:
    """Returns the bare convolution that the kept units of a block merge into, padding hoisted.

    Dropped units pass their input through, and a residual that is wholly inside joins in with its
    shortcuts. Where these do not line up, so that the block cannot merge, it is what the kept units
    alone would be.

    Args:
        graph: The traced network.
        block: The units.
        kept: Indices of the kept ones in the graph, rising; at least one.

    Raises:
        ValueError: If nothing is kept, or the kept units do not fit together.
    """
    if not kept:
        raise ValueError(f"{block} keeps no unit, so there is no convolution to describe")
    try:
        merged = composition(graph, block, kept).spec
    except UnsupportedModelError:
        merged = reduce(compose, (graph.conv_unit(i).spec.bare() for i in kept))
    assert merged is not None  # a kept unit is a convolution
    return merged
