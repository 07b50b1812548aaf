"""What a layer graph is made of: units, residuals, segments, barriers, and blocks of units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from trt_layermerge.core.conv import ConvSpec, PieceSpec, Spec

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
class OpaqueUnit:
    """The end of a part that is not understood: all that it does beside its convolution units.

    It stays, or goes with the whole part (``Branch``).

    Attributes:
        index: Position in ``LayerGraph.units``.
        name: Qualified name of the module that the part is, or of the operation it ends with.
        activation: Canonical name of the activation behind it, or None.
        spec: The whole part with its shortcut, addition and activation, units inside included.
        nodes: Names of its values in the traced graph; ``conv`` is ``branch``, and of a region
            ``sum`` as well.
    """

    index: int
    name: str
    activation: str | None
    spec: PieceSpec
    nodes: UnitNodes


Unit: TypeAlias = ConvUnit | OpaqueUnit


@dataclass(frozen=True, slots=True)
class Branch:
    """A part with something inside that no merge crosses; it may be left out or replaced whole.

    A residual branch, or any other region with one value in and one out. Its units are
    ``units[start:end]``, the last of them the ``OpaqueUnit`` that it ends with. What merges inside
    it, merges there; no block crosses its ends.

    Attributes:
        start: The first unit.
        end: Behind the last unit.
        source: Name of the value from which it starts.
        shortcut: Name of the value that remains without it; ``source`` for an identity, and None
            where nothing does, so that it is only ever replaced.
        remains: What computes the shortcut from the source; empty for an identity.
        macs: Multiply-accumulates of a region, one image; None for a residual branch.
    """

    start: int
    end: int
    source: str
    shortcut: str | None
    remains: tuple[Spec, ...] = ()
    macs: int | None = None


@dataclass(frozen=True, slots=True)
class Bridge:
    """A group normalisation between two units, which goes where the two become one convolution.

    The published method merges so in the residual blocks of a diffusion model: normalisation and
    activation between the units go, a new normalisation stands behind them, and what was added to
    every position between them goes through the second convolution with everything else.

    Attributes:
        start: The first unit; the second is ``start + 1``.
        norm: Qualified name of the normalisation.
        linear: Qualified name of the linear layer whose output, one number a channel, is added
            before the normalisation; None where nothing is.
        features: Name of the value ``(N, F)`` that this layer reads; None likewise.
    """

    start: int
    norm: str
    linear: str | None = None
    features: str | None = None


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
class Stream:
    """Channels of one map that others share, since they are added, filtered one by one or pooled.

    What is added to one map is as wide as it, so all of it gets narrower together.

    Attributes:
        name: Qualified name of the module that puts it out first.
        channels: How many there are.
        writers: Qualified names of the convolutions that put it out, in order.
        readers: Those of the convolutions and linear layers that read it; a depthwise one does
            both.
        norms: Those of the batch normalisations on the way.
        refusal: Why it has to keep its width, or None if it may be narrower.
    """

    name: str
    channels: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    norms: tuple[str, ...]
    refusal: str | None = None


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


@dataclass(frozen=True, slots=True, order=True)
class Block:
    """The units ``units[start:end]``, half open."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start
