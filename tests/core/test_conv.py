"""The geometry of a composition, against sets of taps and of connected channels."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trt_layermerge.core.conv import AddSpec, ConvSpec, compose, spec_from_json


def spec(
    channels: tuple[int, int] = (1, 1),
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (1, 1, 1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    size: tuple[int, int] = (19, 23),
) -> ConvSpec:
    return ConvSpec(*channels, kernel, stride, padding, dilation, groups, *size)


def taps(of: ConvSpec, axis: int) -> set[int]:
    """Returns where output 0 reads, relative to the first padded row or column."""
    return {of.dilation[axis] * i for i in range(of.kernel[axis])}


pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))
layers = st.builds(
    spec,
    kernel=pairs,
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)


@settings(max_examples=300, deadline=None)
@given(first=layers, second=layers)
def test_composition_covers_exactly_the_reachable_taps(first: ConvSpec, second: ConvSpec) -> None:
    merged = compose(first, second)
    for axis in (0, 1):
        step = first.stride[axis]
        reached = {a + step * b for a in taps(first, axis) for b in taps(second, axis)}
        found = taps(merged, axis)
        assert reached <= found
        assert (min(found), max(found)) == (min(reached), max(reached))
        # No coarser dilation would do: it would miss a tap.
        coarser = {d for d in range(merged.dilation[axis] + 1, max(reached) + 1)}
        assert not any(all(tap % d == 0 for tap in reached) for d in coarser)


@settings(max_examples=300, deadline=None)
@given(first=layers, second=layers, rows=st.integers(1, 40), columns=st.integers(1, 40))
def test_composition_has_the_output_size_of_the_chain(
    first: ConvSpec, second: ConvSpec, rows: int, columns: int
) -> None:
    first = spec(
        (1, 1), first.kernel, first.stride, first.padding, first.dilation, 1, (rows, columns)
    )
    assume(min(first.out_size) >= 1)
    second = spec(
        (1, 1), second.kernel, second.stride, second.padding, second.dilation, 1, first.out_size
    )
    assume(min(second.out_size) >= 1)
    assert compose(first, second).out_size == second.out_size


def connected(channels_in: int, channels_out: int, groups: int) -> list[list[int]]:
    """Returns the inputs that each output of a grouped convolution reads."""
    width = channels_in // groups
    return [
        list(range(g * width, (g + 1) * width))
        for g in (o * groups // channels_out for o in range(channels_out))
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *itertools.product([(12, 12, g) for g in (1, 2, 3, 4, 6, 12)], repeat=2),
        ((6, 12, 6), (12, 24, 4)),
        ((24, 12, 4), (12, 6, 6)),
    ],
)
def test_groups_of_a_composition_are_the_finest_that_hold(
    first: tuple[int, int, int], second: tuple[int, int, int]
) -> None:
    merged = compose(spec(first[:2], groups=first[2]), spec(second[:2], groups=second[2]))
    inner, outer = connected(*first), connected(*second)
    reads = [sorted({i for m in middle for i in inner[m]}) for middle in outer]

    def hold(groups: int) -> bool:
        allowed = connected(first[0], second[1], groups)
        return all(set(r) <= set(a) for r, a in zip(reads, allowed, strict=True))

    common = [g for g in range(1, 13) if first[0] % g == 0 and second[1] % g == 0]
    assert merged.groups == max(g for g in common if hold(g))


def test_what_is_fused_behind_the_second_is_kept_and_the_first_is_not() -> None:
    second = ConvSpec(4, 5, (1, 1), (1, 1), (0,) * 4, (1, 1), 1, 8, 8, "relu6", True)
    first = ConvSpec(3, 4, (3, 3), (1, 1), (1,) * 4, (1, 1), 1, 8, 8, "relu")
    merged = compose(first, second)
    assert (merged.in_channels, merged.out_channels) == (3, 5)
    assert (merged.activation, merged.residual) == ("relu6", True)


def test_channels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="4 channels do not feed 5"):
        compose(spec((3, 4)), spec((5, 6)))


def test_macs_of_a_depthwise_convolution_by_hand() -> None:
    depthwise = spec((8, 8), stride=(2, 2), groups=8, size=(10, 12))
    assert depthwise.out_size == (5, 6)
    assert depthwise.macs == 5 * 6 * 9 * 8
    assert depthwise.depthwise and not depthwise.pointwise


@given(layers)
def test_specs_survive_json(layer: ConvSpec) -> None:
    assert spec_from_json(layer.to_json()) == layer


def test_an_addition_survives_json() -> None:
    add = AddSpec(16, 8, 9, "leaky_relu:0.01")
    assert spec_from_json(add.to_json()) == add


@pytest.mark.parametrize(
    "change", [{"op": "pool"}, {"kernel": [3]}, {"padding": [1, 1]}, {"groups": "many"}]
)
def test_malformed_specs_are_refused(change: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        spec_from_json({**spec().to_json(), **change})
