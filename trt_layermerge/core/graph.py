"""A trained network as a chain of convolution units: what may merge, and what may not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trt_layermerge.core.blocks import enumerate_blocks
from trt_layermerge.core.codec import dump, load
from trt_layermerge.core.conv import ConvSpec, Pair
from trt_layermerge.core.jsonio import Json, damage, read_json, write_json
from trt_layermerge.core.unit import (
    Barrier,
    Block,
    Branch,
    Bridge,
    ConvUnit,
    OpaqueUnit,
    Residual,
    Rules,
    Segment,
    Stream,
    Unit,
)


@dataclass(frozen=True)
class LayerGraph:
    """What is known of a network: its units in order, and what binds or separates them.

    Attributes:
        units: Every convolution that merging may touch, in the order of execution, and one opaque
            unit at the end of every part that is not understood.
        segments: Runs of units between barriers; they partition ``units``.
        residuals: Residual additions, properly nested, each inside one segment.
        barriers: Everything that is not understood or cannot merge, with the reason.
        input_shape: Shape of the example input, ``(N, C, H, W)``.
        head_pointwise: Index of a pointwise unit that feeds the global pooling, or None.
        further_shapes: Shapes of the example inputs after the first, where there are any.
        branches: Residual branches and other regions that are not understood, nested or apart.
        input_types: Types of all of them as torch names them, such as ``int64``; none where all are
            of the network's own.
        bridges: Group normalisations that the published rules merge across.
        projections: Indices of units that stand beside a branch that is no understood residual;
            the published rules leave them alone.
        wholes: Modules around some of the ``branches`` that may be replaced whole as well; they
            have no unit of their own, and their units merge with those beside them.
        streams: Maps outside residual branches, by the channels that they share.
    """

    units: tuple[Unit, ...]
    segments: tuple[Segment, ...]
    residuals: tuple[Residual, ...]
    barriers: tuple[Barrier, ...]
    input_shape: tuple[int, ...]
    head_pointwise: int | None = None
    further_shapes: tuple[tuple[int, ...], ...] = ()
    branches: tuple[Branch, ...] = ()
    input_types: tuple[str, ...] = ()
    bridges: tuple[Bridge, ...] = ()
    projections: tuple[int, ...] = ()
    wholes: tuple[Branch, ...] = ()
    streams: tuple[Stream, ...] = ()

    @property
    def refusals(self) -> tuple[Barrier, ...]:
        """What cannot merge, and why."""
        return self.barriers

    @property
    def convs(self) -> tuple[ConvSpec, ...]:
        """Every convolution of the chain as it stands, projections last."""
        units = tuple(unit.spec for unit in self.conv_units)
        return units + tuple(spec for r in self.residuals for spec in r.projections)

    @property
    def conv_units(self) -> tuple[ConvUnit, ...]:
        """The units that are convolutions."""
        return tuple(unit for unit in self.units if isinstance(unit, ConvUnit))

    @property
    def activation_count(self) -> int:
        """Activations of the chain as it stands."""
        return sum(unit.activation is not None for unit in self.units)

    @cached_property
    def residual_ending_at(self) -> dict[int, Residual]:
        """The residual whose addition follows unit ``end - 1``, by ``end``."""
        return {r.end: r for r in self.residuals}

    @cached_property
    def branch_ending_at(self) -> dict[int, Branch]:
        """The branch whose opaque unit is unit ``end - 1``, by ``end``."""
        return {b.end: b for b in self.branches}

    @cached_property
    def read_streams(self) -> dict[str, Stream]:
        """The stream that may be narrower and that a module reads, by its qualified name."""
        return {name: s for s in self.streams if s.refusal is None for name in s.readers}

    @cached_property
    def written_streams(self) -> dict[str, Stream]:
        """The stream that may be narrower and that a module puts out, by its qualified name."""
        return {name: s for s in self.streams if s.refusal is None for name in s.writers}

    def branch_at(self, block: Block) -> Branch | None:
        """Returns the branch, region or module that a block is as a whole, or None."""
        return self._wholes.get(block)

    @cached_property
    def _wholes(self) -> dict[Block, Branch]:
        return {Block(b.start, b.end): b for b in (*self.wholes, *self.branches)}

    def bridge_at(self, block: Block) -> Bridge | None:
        """Returns the bridge whose two units a block is, or None."""
        found = (b for b in self.bridges if Block(b.start, b.start + 2) == block)
        return next(found, None)

    def conv_unit(self, index: int) -> ConvUnit:
        """Returns a unit that is a convolution. Raises ``TypeError`` for an opaque one."""
        unit = self.units[index]
        if isinstance(unit, OpaqueUnit):
            raise TypeError(f"unit {index} ({unit.name}) is opaque")
        return unit

    def ends(self, block: Block) -> tuple[tuple[int, Pair], tuple[int, Pair]]:
        """Returns channels and size of the maps that a block reads and puts out."""
        last = self.units[block.end - 1].spec
        parts = [b.end for b in self.branches if b.start == block.start and b.end <= block.end]
        first = self.units[max(parts, default=block.start + 1) - 1].spec
        before = first.in_channels, (first.height, first.width)
        return before, (last.out_channels, last.out_size)

    def blocks(self, rules: Rules = "full") -> tuple[Block, ...]:
        """Returns every block that may become one piece, ordered by start, then end."""
        return enumerate_blocks(self, rules)

    def residuals_inside(self, start: int, end: int) -> tuple[Residual, ...]:
        """Returns the residuals that lie wholly in ``units[start:end]``, inner before outer."""
        inside = [r for r in self.residuals if start <= r.start and r.end <= end]
        return tuple(sorted(inside, key=lambda r: (r.end, -r.start)))

    def open_residual(self, start: int, end: int) -> Residual | None:
        """Returns the residual that ends with ``units[start:end]`` but began before it."""
        residual = self.residual_ending_at.get(end)
        return residual if residual is not None and residual.start < start else None


_OPTIONAL = (
    "further_shapes",
    "branches",
    "wholes",
    "input_types",
    "bridges",
    "projections",
    "streams",
)
"""What is left out of the file where a network has none."""


def save_graph(graph: LayerGraph, path: Path) -> None:
    """Writes a graph. Raises ``DeviceError`` if the file cannot be written."""
    write_json(path, "graph", graph_to_json(graph))


def load_graph(path: Path) -> LayerGraph:
    """Returns the graph of a file.

    Raises:
        UsageError: If there is no such file.
        CorruptInputError: If it is damaged.
    """
    body = read_json(path, "graph")
    with damage(path):
        return graph_from_json(body)


def graph_to_json(graph: LayerGraph) -> Json:
    """Returns a JSON-ready mapping that ``graph_from_json`` reads back."""
    body = {**dump(graph), "segments": [[s.start, s.end] for s in graph.segments]}
    return {key: value for key, value in body.items() if value or key not in _OPTIONAL}


def graph_from_json(body: Json) -> LayerGraph:
    """Returns the graph of a mapping. Raises what malformed fields cause."""
    segments = [{"start": start, "end": end} for start, end in body["segments"]]
    optional = dict.fromkeys(_OPTIONAL, ())
    return load(LayerGraph, {**optional, **body, "segments": segments})
