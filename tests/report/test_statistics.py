"""Intervals of accuracies against published examples and their defining equation."""

from __future__ import annotations

import math

import pytest

from trt_layermerge.report.data import Accuracy


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_equals_published_values(
    right: int, count: int, low: float, high: float
) -> None:
    found = Accuracy(right / count, count).interval
    assert found == pytest.approx((low, high), abs=5.1e-5)


def test_wilson_interval_solves_its_defining_equation() -> None:
    share, count, z = 296 / 340, 340, 1.959963984540054
    for end in Accuracy(share, count).interval:
        assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / count), rel=1e-12)


@pytest.mark.parametrize(
    ("share", "count"), [(0.5, 0), (math.nan, 10), (1.2, 10), (-0.1, 10), (math.inf, 5)]
)
def test_wilson_interval_of_nothing_says_nothing(share: float, count: int) -> None:
    assert Accuracy(share, count).interval == (0.0, 1.0)


def test_wilson_interval_of_all_right_ends_at_one() -> None:
    assert Accuracy(1.0, 20).interval == pytest.approx((0.8389, 1.0), abs=5.1e-5)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17 (1998) 873-890, table II, method 10.
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 20), 0.6791, 1.0000),
    ],
)
def test_difference_interval_equals_published_values(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    one, other = (Accuracy(right / count, count) for right, count in (first, second))
    assert one.minus(other) == pytest.approx((low, high), abs=5.1e-5)
