"""Numbers as words, the ones that are no numbers too."""

from __future__ import annotations

import math

import pytest

from trt_layermerge.report import text


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (text.milliseconds(0.41351), "0.4135 ms"),
        (text.milliseconds(2.1128), "2.113 ms"),
        (text.milliseconds(12.345678), "12.35 ms"),
        (text.milliseconds(1234.56), "1234.6 ms"),
        (text.percent(0.8992, 2), "89.92 %"),
        (text.signed_percent(-0.0141), "−1.4 %"),
        (text.points(-0.0026), "−0.3 points"),
        (text.points_interval((-0.0137, 0.0091)), "−1.4 to +0.9 points"),
        (text.percents((0.891, 0.9066)), "89.1 to 90.7 %"),
        (text.decimal(0.9, 3), "0.900"),
        (text.decimal(None, 3), "–"),
        (text.decimal(math.nan, 3), "not a number"),
        (text.ratio(2.0449), "2.04x"),
        (text.seconds(0.5), "0.50 s"),
        (text.seconds(89.04), "89.0 s"),
        (text.seconds(725.9), "12 min 05 s"),
        (text.count(10203136), "10\u2009203\u2009136"),
        (text.plain(True), "yes"),
        (text.plain(3.1e-15), "3.1e-15"),
        (text.plain(None), "none"),
    ],
)
def test_figures(found: str, expected: str) -> None:
    assert found == expected


@pytest.mark.parametrize(
    "write",
    [
        text.milliseconds,
        text.percent,
        text.signed_percent,
        text.points,
        text.ratio,
        text.seconds,
        text.count,
    ],
)
def test_what_is_no_figure_becomes_a_word(write: object) -> None:
    assert callable(write)
    found = [write(value) for value in (None, math.nan, math.inf, -math.inf)]
    assert found == ["not measured", "not a number", "infinite", "infinite"]
