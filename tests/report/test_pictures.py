"""The plots: well-formed, the same every time, and None where there is nothing to plot."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from tests.report import fakes
from trt_layermerge.report.chain import chain_picture
from trt_layermerge.report.data import Accuracy, Bench, Epoch, Finalist, Stop, Timing
from trt_layermerge.report.palette import DARK
from trt_layermerge.report.plots import (
    Axis,
    comparison_plot,
    finetune_plots,
    frontier_plot,
    prediction_plot,
)

NAN, INF = math.nan, math.inf
RUN = fakes.resnet_run()
DRAWINGS: dict[str, Callable[[], str | None]] = {
    "chain": lambda: chain_picture(RUN.graph, RUN.plan, RUN.kinds),
    "frontier": lambda: frontier_plot(RUN.frontier, RUN.untouched, RUN.stops, 0.42),
    "prediction": lambda: prediction_plot(RUN.finalists),
    "accuracy": lambda: finetune_plots(RUN.history, 0.9018)["accuracy"],
    "loss": lambda: finetune_plots(RUN.history, 0.9018)["loss"],
    "comparison": lambda: comparison_plot(RUN.accuracies, RUN.bench),
}


def _words(svg: str | None) -> str:
    assert svg is not None
    return " ".join(ElementTree.fromstring(svg).itertext())


@pytest.mark.parametrize("name", DRAWINGS)
def test_pictures_are_whole_self_contained_and_deterministic(name: str) -> None:
    svg = DRAWINGS[name]()
    assert svg is not None
    assert svg == DRAWINGS[name]()
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("aria-label")
    links = re.findall(r'(?:href|src)="([^"]*)"', svg)
    assert all(link.startswith("#") for link in links)
    assert set(re.findall(r'https?://[^"\s<]+', svg)) == {"http://www.w3.org/2000/svg"}
    assert "<script" not in svg
    assert "metadata" not in svg


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_colour_has_a_dark_twin(name: str) -> None:
    svg = DRAWINGS[name]()
    assert svg is not None
    drawn = re.sub(r"<style>.*?</style>", "", svg, flags=re.DOTALL)
    drawn = re.sub(r'"#[^"]*"|url\(#\w+\)', lambda m: m[0] if len(m[0]) == 9 else "", drawn)
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) <= set(DARK)


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_text_is_too_small_to_read(name: str) -> None:
    svg = DRAWINGS[name]()
    sizes = re.findall(r'font(?:-size)?(?:="|: (?:bold |\d00 )?)([\d.]+)(?:px|")', svg or "")
    assert sizes
    assert min(map(float, sizes)) >= 11


def test_frontier_names_budget_chosen_and_original() -> None:
    words = _words(DRAWINGS["frontier"]())
    for expected in ("budget 0.4200 ms", "chosen", "original", "expected loss"):
        assert expected in words
    tip = 'data-tip="chosen: predicted 0.4120 ms, expected loss 1.69"'  # 19 less 17.31
    assert tip in (DRAWINGS["frontier"]() or "")


def test_plans_far_below_the_chosen_one_are_not_drawn() -> None:
    points = ((1.0, -1000.0), (2.0, 8.0), (3.0, 10.0))
    near = frontier_plot(points, (3.5, 10.0), (Stop(2.0, 8.0, (), chosen=True),), None)
    assert "1000" not in _words(near)
    far = frontier_plot(points, (3.5, 10.0), (Stop(1.0, -1000.0, (), chosen=True),), None)
    assert "1000" in _words(far)


def test_a_long_frontier_stays_a_small_picture() -> None:
    points = tuple((1 + i / 20000, math.log1p(i)) for i in range(20000))
    svg = frontier_plot(points, None, (Stop(*points[9000], (), chosen=True),), 1.5)
    assert svg is not None
    assert len(svg) < 10_000


def test_spots_stand_where_their_values_are() -> None:
    # By hand: 1 stands at 10 % and 3 at 90 %, so 2 stands in the middle; downwards, the same.
    assert [Axis("", 1, 3, 10, 90)(value) for value in (1, 2, 3)] == [10, 50, 90]
    assert [Axis("", 1, 3, 90, 10)(value) for value in (1, 2, 3)] == [90, 50, 10]
    ticks = Axis("", 0.0127, 0.0293, 0, 100).ticks
    assert [tick.words for tick in ticks] == ["0.015", "0.020", "0.025"]
    assert [tick.words for tick in Axis("", -1.1, 1.1, 0, 1).ticks] == [
        *("−1.0", "−0.5", "0.0", "0.5", "1.0")
    ]
    assert [tick.words for tick in Axis("", 0.9, 2.1, 0, 1, whole=True).ticks] == ["1", "2"]


def test_comparison_writes_values_and_intervals() -> None:
    words = _words(DRAWINGS["comparison"]())
    for expected in ("0.8421 ms", "0.4135 ms", "90.2 % (89.3 to 91.0 %)", "repaired"):
        assert expected in re.sub(r"\s+", " ", words)


def test_nothing_to_plot_is_none() -> None:
    assert frontier_plot((), None, (), None) is None
    assert frontier_plot(((NAN, 1.0), (1.0, INF)), None, (), None) is None
    assert prediction_plot(()) is None
    assert prediction_plot((Finalist("a", NAN, 1.0), Finalist("b", 1.0, 0.0))) is None
    nothing = {"accuracy": None, "loss": None}
    assert finetune_plots((), 0.9) == nothing
    assert finetune_plots((Epoch(1, NAN), Epoch(2, INF, NAN)), None) == nothing
    assert comparison_plot({}, None) is None
    assert comparison_plot({"original": Accuracy(NAN, 5)}, None) is None


def test_what_is_not_finite_is_left_out() -> None:
    bad = Timing(NAN, NAN, INF)
    bench = Bench("fp32", bad, Timing(1.0, 1.1, 1.2), NAN, NAN, NAN)
    stops = (Stop(NAN, 1.0, ()), Stop(1.0, NAN, (), chosen=True))
    drawings = [
        frontier_plot(((1.0, 2.0), (INF, 3.0)), (INF, 1.0), stops, NAN),
        prediction_plot((Finalist("a", 1.0, INF), Finalist("b", 1.0, 1.05))),
        *finetune_plots((Epoch(1, NAN, 0.5), Epoch(2, 0.4, NAN)), INF).values(),
        comparison_plot({"original": Accuracy(0.5, 0), "merged": Accuracy(INF, 3)}, bench),
    ]
    for svg in drawings:
        assert svg is not None
        assert not re.search(r"\b(nan|inf)\b", svg.lower())


def test_dollar_signs_and_tags_in_names_stay_text() -> None:
    name = "$x_1^2$ <b>&"
    assert name in _words(comparison_plot({name: Accuracy(0.5, 10)}, None))
