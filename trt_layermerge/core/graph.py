"""A trained network as a chain of convolution units: what may merge, and what may not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

from trt_layermerge.core.conv import ConvSpec

if TYPE_CHECKING:
    from trt_layermerge.core.candidate import Block

Rules: TypeAlias = Literal["paper", "full"]


@dataclass(frozen=True, slots=True)
class UnitNodes:
    """Names of the values of one unit in the traced graph.

    Attributes:
        conv: Output of the convolution.
        branch: After the batch normalisation, before any residual addition.
        sum: After the residual addition that ends at this unit; ``branch`` where none does.
        out: After the activation; ``sum`` where there is none.
    """

    conv: str
    branch: str
    sum: str
    out: str


@dataclass(frozen=True, slots=True)
class ConvUnit:
    """Convolution, batch normalisation and activation: one position of depth.

    Attributes:
        index: Position in ``LayerGraph.units``.
        name: Qualified name of the convolution module.
        bn: Qualified name of the batch normalisation, or None.
        activation: Canonical name of the activation (after the residual addition, if one ends
            here), or None.
        spec: The convolution as it stands, with its activation and residual flag.
        nodes: Names of its values in the traced graph.
        weight_l1: Sum of the magnitudes of the convolution's weights; decides which of several
            equal convolutions is kept.
    """

    index: int
    name: str
    bn: str | None
    activation: str | None
    spec: ConvSpec
    nodes: UnitNodes
    weight_l1: float = 0.0

    @property
    def irreducible(self) -> bool:
        """Whether dropping the convolution would change the shape of the map."""
        spec = self.spec
        return spec.in_channels != spec.out_channels or spec.out_size != (spec.height, spec.width)


@dataclass(frozen=True, slots=True)
class Shortcut:
    """One path beside a residual branch: identity, batch normalisation, or a projection.

    Attributes:
        conv: Qualified name of the projection convolution, or None.
        bn: Qualified name of the batch normalisation, or None.
        spec: Geometry of the projection, or None.
        out: Name of the path's last value in the traced graph.
    """

    conv: str | None
    bn: str | None
    spec: ConvSpec | None
    out: str

    @property
    def identity(self) -> bool:
        """Whether the path hands on its input untouched."""
        return self.conv is None and self.bn is None


@dataclass(frozen=True, slots=True)
class Residual:
    """Paths from the input of unit ``start`` added to the branch output of unit ``end - 1``."""

    start: int
    end: int
    shortcuts: tuple[Shortcut, ...]

    @property
    def projections(self) -> tuple[ConvSpec, ...]:
        """Geometry of every convolution on the shortcut paths."""
        return tuple(s.spec for s in self.shortcuts if s.spec is not None)


@dataclass(frozen=True, slots=True)
class Segment:
    """A maximal run of units, ``units[start:end]``, without a barrier inside."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Barrier:
    """A place that no merge crosses.

    Attributes:
        node: Name of the value in the traced graph, or qualified name of the module.
        reason: Why, in words for the user.
        unit: Index of the unit it concerns, where it concerns one.
    """

    node: str
    reason: str
    unit: int | None = None


@dataclass(frozen=True)
class LayerGraph:
    """What is known of a network: its units in order, and what binds or separates them.

    Attributes:
        units: Every convolution that merging may touch, in the order of execution.
        segments: Runs of units between barriers; they partition ``units``.
        residuals: Residual additions, properly nested, each inside one segment.
        barriers: Everything that is not understood or cannot merge, with the reason.
        input_shape: Shape of the example input, ``(N, C, H, W)``.
        head_pointwise: Index of a pointwise unit that feeds the global pooling, or None.
    """

    units: tuple[ConvUnit, ...]
    segments: tuple[Segment, ...]
    residuals: tuple[Residual, ...]
    barriers: tuple[Barrier, ...]
    input_shape: tuple[int, ...]
    head_pointwise: int | None = None

    @property
    def refusals(self) -> tuple[Barrier, ...]:
        """What cannot merge, and why."""
        return self.barriers

    @property
    def convs(self) -> tuple[ConvSpec, ...]:
        """Every convolution of the chain as it stands, projections last."""
        units = tuple(unit.spec for unit in self.units)
        return units + tuple(spec for r in self.residuals for spec in r.projections)

    @property
    def activation_count(self) -> int:
        """Activations of the chain as it stands."""
        return sum(unit.activation is not None for unit in self.units)

    @cached_property
    def residual_ending_at(self) -> dict[int, Residual]:
        """The residual whose addition follows unit ``end - 1``, by ``end``."""
        return {r.end: r for r in self.residuals}

    def blocks(self, rules: Rules = "full") -> tuple[Block, ...]:
        """Returns every block that may become one piece, ordered by start, then end."""
        from trt_layermerge.core.blocks import enumerate_blocks

        return enumerate_blocks(self, rules)

    def residuals_inside(self, start: int, end: int) -> tuple[Residual, ...]:
        """Returns the residuals that lie wholly in ``units[start:end]``, inner before outer."""
        inside = [r for r in self.residuals if start <= r.start and r.end <= end]
        return tuple(sorted(inside, key=lambda r: (r.end, -r.start)))

    def open_residual(self, start: int, end: int) -> Residual | None:
        """Returns the residual that ends with ``units[start:end]`` but began before it."""
        residual = self.residual_ending_at.get(end)
        return residual if residual is not None and residual.start < start else None
