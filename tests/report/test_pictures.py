"""The plots: well-formed, the same every time, and None where there is nothing to plot."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from tests.report import fakes
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import MissingDependencyError
from trt_layermerge.report.chain import chain_picture
from trt_layermerge.report.data import Accuracy, Bench, Epoch, Finalist, Timing
from trt_layermerge.report.palette import DARK
from trt_layermerge.report.plots import (
    comparison_plot,
    finetune_plot,
    frontier_plot,
    prediction_plot,
)

NAN, INF = math.nan, math.inf
RUN = fakes.resnet_run()
DRAWINGS: dict[str, Callable[[], str | None]] = {
    "chain": lambda: chain_picture(RUN.graph, RUN.plan, RUN.kinds),
    "frontier": lambda: frontier_plot(RUN.frontier, RUN.untouched, RUN.plan, RUN.finalists),
    "prediction": lambda: prediction_plot(RUN.finalists),
    "finetune": lambda: finetune_plot(RUN.history, 0.9018),
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
    addresses = set(re.findall(r'https?://[^"\s<]+', svg))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "<script" not in svg
    assert "metadata" not in svg


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_colour_has_a_dark_twin(name: str) -> None:
    svg = DRAWINGS[name]()
    assert svg is not None
    drawn = re.sub(r"<style>.*?</style>", "", svg, flags=re.DOTALL)
    drawn = re.sub(r'"#[^"]*"|url\(#\w+\)', lambda m: m[0] if len(m[0]) == 9 else "", drawn)
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) <= set(DARK)


def test_identifiers_of_different_pictures_differ() -> None:
    ids = [i for name in DRAWINGS for i in set(re.findall(r' id="(\w+)"', DRAWINGS[name]() or ""))]
    assert ids
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_text_is_too_small_to_read(name: str) -> None:
    svg = DRAWINGS[name]()
    sizes = re.findall(r'font(?:-size)?(?:="|: (?:bold |\d00 )?)([\d.]+)(?:px|")', svg or "")
    assert sizes
    assert min(map(float, sizes)) >= 11


def test_frontier_names_budget_chosen_and_original() -> None:
    words = _words(DRAWINGS["frontier"]())
    for expected in ("budget 0.4200 ms", "chosen 0.4120 ms", "original", "finalist as measured"):
        assert expected in words


def test_plans_far_below_the_chosen_one_are_not_drawn() -> None:
    points = ((1.0, -1000.0), (2.0, 8.0), (3.0, 10.0))
    words = _words(frontier_plot(points, None, MergePlan((), 2.0, 8.0), ()))
    assert "−200" not in words
    words = _words(frontier_plot(points, None, MergePlan((), 3.0, 10.0), ()))
    assert "−200" in words


def test_a_long_frontier_stays_a_small_picture() -> None:
    points = tuple((1 + i / 20000, math.log1p(i)) for i in range(20000))
    svg = frontier_plot(points, None, MergePlan((), *points[9000], 1.5), ())
    assert svg is not None
    assert len(svg) < 60_000


def test_comparison_writes_values_and_intervals() -> None:
    words = _words(DRAWINGS["comparison"]())
    for expected in ("0.8421 ms", "0.4135 ms", "90.2 % (89.3 to 91.0 %)", "repaired"):
        assert expected in re.sub(r"\s+", " ", words)


def test_nothing_to_plot_is_none() -> None:
    assert frontier_plot((), None, MergePlan(()), ()) is None
    assert frontier_plot(((NAN, 1.0), (1.0, INF)), None, MergePlan(()), ()) is None
    assert prediction_plot(()) is None
    assert prediction_plot((Finalist("a", NAN, 1.0), Finalist("b", 1.0, 0.0))) is None
    assert finetune_plot((), 0.9) is None
    assert finetune_plot((Epoch(1, NAN), Epoch(2, INF, NAN)), None) is None
    assert comparison_plot({}, None) is None
    assert comparison_plot({"original": Accuracy(NAN, 5)}, None) is None


def test_what_is_not_finite_is_left_out() -> None:
    bad = Timing(NAN, NAN, INF)
    bench = Bench("fp32", bad, Timing(1.0, 1.1, 1.2), NAN, NAN, NAN)
    drawings = [
        frontier_plot(
            ((1.0, 2.0), (INF, 3.0)),
            (INF, 1.0),
            MergePlan((), NAN, NAN, NAN),
            (Finalist("a", NAN, 1.0, 2.0), Finalist("b", 1.0, 1.1, INF)),
        ),
        prediction_plot((Finalist("a", 1.0, INF), Finalist("b", 1.0, 1.05))),
        finetune_plot((Epoch(1, NAN, 0.5), Epoch(2, 0.4, NAN)), INF),
        comparison_plot({"original": Accuracy(0.5, 0), "merged": Accuracy(INF, 3)}, bench),
    ]
    for svg in drawings:
        words = _words(svg).lower()
        assert not re.search(r"\b(nan|inf)\b", words)


def test_dollar_signs_and_tags_in_names_stay_text() -> None:
    name = "$x_1^2$ <b>&"
    assert name in _words(comparison_plot({name: Accuracy(0.5, 10)}, None))


def test_matplotlib_that_is_missing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"matplotlib.*pip install"):
        prediction_plot(RUN.finalists)
