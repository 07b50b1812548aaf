"""What runs in a network and can be timed alone; the geometry of two convolutions in a row."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from trt_layermerge.core.codec import dump, load

Pair: TypeAlias = tuple[int, int]
Pads: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """One biased convolution on a known map, with what is fused behind it.

    Attributes:
        in_channels: Channels of the input map.
        out_channels: Channels of the output map.
        kernel: Taps as (height, width).
        stride: Step as (vertical, horizontal).
        padding: Zeros as (top, left, bottom, right).
        dilation: Distance of taps as (vertical, horizontal).
        groups: Number of channel groups; ``in_channels`` means depthwise.
        height: Rows of the input map.
        width: Columns of the input map.
        activation: Canonical name of the activation behind it, or None.
        residual: Whether a map of the output's shape is added before the activation.
    """

    op: Literal["conv"] = field(default="conv", kw_only=True, repr=False, compare=False)
    in_channels: int
    out_channels: int
    kernel: Pair
    stride: Pair
    padding: Pads
    dilation: Pair
    groups: int
    height: int
    width: int
    activation: str | None = None
    residual: bool = False

    @property
    def depthwise(self) -> bool:
        """Whether every channel is filtered on its own, none mixed or multiplied."""
        return self.groups == self.in_channels == self.out_channels

    @property
    def pointwise(self) -> bool:
        """Whether the kernel is a single tap."""
        return self.kernel == (1, 1)

    @property
    def extent(self) -> Pair:
        """Rows and columns that the dilated kernel spans."""
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        return dh * (kh - 1) + 1, dw * (kw - 1) + 1

    @property
    def out_size(self) -> Pair:
        """Rows and columns of the output map."""
        top, left, bottom, right = self.padding
        extent_h, extent_w = self.extent
        return (
            (self.height + top + bottom - extent_h) // self.stride[0] + 1,
            (self.width + left + right - extent_w) // self.stride[1] + 1,
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image."""
        rows, columns = self.out_size
        taps = self.kernel[0] * self.kernel[1]
        return rows * columns * taps * self.out_channels * self.in_channels // self.groups

    def bare(self) -> ConvSpec:
        """Returns the same convolution with nothing fused behind it, one tap never dilated."""
        rows, columns = (d if k > 1 else 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        return replace(self, dilation=(rows, columns), activation=None, residual=False)

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready mapping that ``spec_from_json`` reads back."""
        return dump(self)

    def __str__(self) -> str:
        """Returns a short form such as ``16>32 k3x3 s2 g1 @16x16 +res relu``."""
        stride = "" if self.stride == (1, 1) else f" s{self.stride[0]}x{self.stride[1]}"
        dilation = "" if self.dilation == (1, 1) else f" d{self.dilation[0]}x{self.dilation[1]}"
        groups = " dw" if self.depthwise else "" if self.groups == 1 else f" g{self.groups}"
        tail = (" +res" if self.residual else "") + (
            f" {self.activation}" if self.activation else ""
        )
        return (
            f"{self.in_channels}>{self.out_channels} k{self.kernel[0]}x{self.kernel[1]}"
            f"{stride}{dilation}{groups} @{self.height}x{self.width}{tail}"
        )


@dataclass(frozen=True, slots=True)
class AddSpec:
    """A residual addition that stays although every convolution before it is gone."""

    op: Literal["add"] = field(default="add", kw_only=True, repr=False, compare=False)
    channels: int
    height: int
    width: int
    activation: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready mapping that ``spec_from_json`` reads back."""
        return dump(self)

    def __str__(self) -> str:
        """Returns a short form such as ``add 16 @16x16 relu``."""
        tail = f" {self.activation}" if self.activation else ""
        return f"add {self.channels} @{self.height}x{self.width}{tail}"


@dataclass(frozen=True, slots=True)
class PieceSpec:
    """A part of a network that no merge goes into, timed as the graph that it is.

    Attributes:
        digest: SHA-256, in hex, of its operations and shapes; weights do not count, so that
            equal parts are timed once.
        in_channels: Channels of the one map that it reads.
        out_channels: Channels of the one map that it puts out.
        height: Rows of the input map.
        width: Columns of the input map.
        out_size: Rows and columns of the output map.
    """

    op: Literal["piece"] = field(default="piece", kw_only=True, repr=False, compare=False)
    digest: str
    in_channels: int
    out_channels: int
    height: int
    width: int
    out_size: Pair

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready mapping that ``spec_from_json`` reads back."""
        return dump(self)

    def __str__(self) -> str:
        """Returns a short form such as ``piece 1f0a2c 64>64 @28x28``."""
        return (
            f"piece {self.digest[:6]} {self.in_channels}>{self.out_channels} "
            f"@{self.height}x{self.width}"
        )


LayerSpec: TypeAlias = ConvSpec | AddSpec
"""What is known well enough to be timed without the network."""

Spec: TypeAlias = LayerSpec | PieceSpec

_SPECS: dict[str, type[Spec]] = {"conv": ConvSpec, "add": AddSpec, "piece": PieceSpec}


def spec_from_json(data: Any) -> Spec:
    """Returns the spec that ``to_json`` wrote.

    Raises:
        KeyError, TypeError, ValueError: If a field is missing or malformed.
    """
    kind = _SPECS.get(data["op"])
    if kind is None:
        raise ValueError(f"there is no spec of the sort {data['op']!r}")
    return load(kind, data)


def compose(first: ConvSpec, second: ConvSpec) -> ConvSpec:
    """Returns the single convolution that equals ``second`` after ``first``, padding hoisted.

    Per axis, with taps of the first at multiples of d1 and of the second at multiples of s1·d2:

        extent' = d1·(k1 − 1) + s1·d2·(k2 − 1) + 1      s' = s1·s2      p' = p1 + s1·p2

    The dilation kept is the largest step that still meets every tap. Contiguous channel groups
    compose to gcd(g1, g2) groups. What is fused behind ``second`` is kept.

    Raises:
        ValueError: If the channels do not fit.
    """
    if first.out_channels != second.in_channels:
        raise ValueError(
            f"cannot compose {first} with {second}: {first.out_channels} channels do not feed "
            f"{second.in_channels}"
        )
    kernel_h, dilation_h = _compose_taps(first, second, 0)
    kernel_w, dilation_w = _compose_taps(first, second, 1)
    (sh, sw), (top, left, bottom, right) = first.stride, first.padding
    return ConvSpec(
        in_channels=first.in_channels,
        out_channels=second.out_channels,
        kernel=(kernel_h, kernel_w),
        stride=(sh * second.stride[0], sw * second.stride[1]),
        padding=(
            top + sh * second.padding[0],
            left + sw * second.padding[1],
            bottom + sh * second.padding[2],
            right + sw * second.padding[3],
        ),
        dilation=(dilation_h, dilation_w),
        groups=math.gcd(first.groups, second.groups),
        height=first.height,
        width=first.width,
        activation=second.activation,
        residual=second.residual,
    )


def _compose_taps(first: ConvSpec, second: ConvSpec, axis: int) -> Pair:
    """Returns kernel size and dilation of the composition along one axis."""
    reach_first = first.dilation[axis] * (first.kernel[axis] - 1)
    step = first.stride[axis] * second.dilation[axis]
    reach_second = step * (second.kernel[axis] - 1)
    dilation = math.gcd(first.dilation[axis] if reach_first else 0, step if reach_second else 0)
    if not dilation:
        return 1, 1
    return 1 + (reach_first + reach_second) // dilation, dilation
