from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from studies.packed import pack, unpack
from studies.statistics import Grouped, across, agreement


def test_accuracy_of_groups_that_are_all_right_or_all_wrong() -> None:
    # Two fonts of 3 images and 1 image: replicates are 3/4 (both), 1 (first twice), 0 (second).
    hits = np.array([[True, True, True, False]])
    found = Grouped(np.array([7, 7, 7, 9])).accuracy(hits)
    assert found.mean == 0.75
    assert (found.low, found.high) == (0.0, 1.0)


def test_replicates_have_the_probabilities_of_drawing_groups() -> None:
    grouped = Grouped(np.array([7, 7, 7, 9]))
    values, counts = np.unique(
        grouped._replicates(np.array([[True, True, True, False]]), 0), return_counts=True
    )
    assert values.tolist() == [0.0, 0.75, 1.0]
    assert counts / grouped.samples == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_images_of_one_font_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    by_font = np.repeat(rng.random(20) < 0.5, 50)[None]
    fonts = np.repeat(np.arange(20), 50)
    grouped, single = Grouped(fonts).accuracy(by_font), Grouped(np.arange(1000)).accuracy(by_font)
    widths = [i.high - i.low for i in (grouped, single)]
    assert widths[0] == pytest.approx(widths[1] * np.sqrt(50), rel=0.15)


def test_difference_is_paired_by_image() -> None:
    # The first is right wherever the second is, and on two images of every font besides.
    rng = np.random.default_rng(1)
    fonts = np.repeat(np.arange(30), 10)
    second = rng.random((1, 300)) < np.repeat(rng.random(30), 10)
    second.reshape(30, 10)[:, :2] = False
    first = second.copy()
    first.reshape(30, 10)[:, :2] = True
    grouped = Grouped(fonts)
    found = grouped.difference(first, second)
    assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2))
    assert found.clear
    alone = grouped.accuracy(first)
    assert alone.high - alone.low > 0.1
    assert not grouped.difference(first, first).clear


def test_seeds_are_drawn_too() -> None:
    hits = np.zeros((2, 40), bool)
    hits[0] = True
    found = Grouped(np.arange(40)).accuracy(hits)
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


def test_rank_correlations_of_repeats() -> None:
    first, second, third = [1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 40.0, 30.0], [4.0, 3.0, 2.0, 1.0]
    # Ranks 1 2 4 3 against 1 2 3 4: 1 − 6 · 2 / (4 · 15) = 0.8.
    assert agreement([first, second, third]) == pytest.approx([0.8, -1.0, -0.8])
    assert across([first], [second, third]) == pytest.approx([0.8, -1.0])
    assert spearmanr(first, second).statistic == pytest.approx(0.8)


def test_packed_numbers_come_back() -> None:
    numbers = np.array([0, 35, 952, 2**31 - 1])
    assert unpack(pack(numbers)).tolist() == numbers.tolist()
