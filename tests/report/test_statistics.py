"""Intervals against published examples, errors against arithmetic by hand."""

from __future__ import annotations

import math

import pytest

from trt_layermerge.report.statistics import (
    difference_interval,
    prediction_error,
    wilson_interval,
)


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
    found = wilson_interval(right / count, count)
    assert found == pytest.approx((low, high), abs=5.1e-5)


def test_wilson_interval_solves_its_defining_equation() -> None:
    share, count, z = 0.87, 340, 1.959963984540054
    for end in wilson_interval(share, count):
        assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / count), rel=1e-12)


@pytest.mark.parametrize(
    ("share", "count"), [(0.5, 0), (math.nan, 10), (1.2, 10), (-0.1, 10), (math.inf, 5)]
)
def test_wilson_interval_of_nothing_says_nothing(share: float, count: int) -> None:
    assert wilson_interval(share, count) == (0.0, 1.0)


def test_wilson_interval_of_all_right_ends_at_one() -> None:
    assert wilson_interval(1.0, 20) == pytest.approx((0.8389, 1.0), abs=5.1e-5)


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
    found = difference_interval(first[0] / first[1], first[1], second[0] / second[1], second[1])
    assert found == pytest.approx((low, high), abs=5.1e-5)


def test_prediction_error_by_hand() -> None:
    found = prediction_error([1.0, 2.2, 2.7, 4.0], [1.0, 2.0, 3.0, 5.0])
    assert found is not None
    assert found.count == 4
    assert found.median == pytest.approx(0.1, rel=1e-12)
    assert found.worst == pytest.approx(0.2, rel=1e-12)
    assert found.spearman == pytest.approx(1.0, rel=1e-12)


def test_spearman_shares_ranks_between_ties() -> None:
    found = prediction_error([1.0, 2.0, 2.0, 3.0], [4.0, 3.0, 2.0, 1.0])
    assert found is not None
    # Ranks 1, 2.5, 2.5, 4 against 4, 3, 2, 1: covariance -4.5, variances 4.5 and 5.
    assert found.spearman == pytest.approx(-4.5 / math.sqrt(4.5 * 5), rel=1e-12)


def test_prediction_error_leaves_out_what_is_no_latency() -> None:
    found = prediction_error([1.1, math.nan, math.inf, 2.0, 0.0], [1.0, 1.0, 1.0, 0.0, 1.0])
    assert found is not None
    assert (found.count, found.spearman) == (1, None)
    assert found.worst == pytest.approx(0.1, rel=1e-12)
    assert prediction_error([], []) is None
    assert prediction_error([math.nan], [1.0]) is None
