"""The page that compares several speed-ups: every figure is a report's, and nothing is claimed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.report import fakes
from tests.report.test_pages import HOSTILE, Outline
from trt_layermerge.report.data import Accuracy, RunReport
from trt_layermerge.report.plans import Planned, write_plans


def at(speedup: float, accuracy: float, **changes: object) -> RunReport:
    """The full run, with another speed-up and accuracy, and nothing left open."""
    run = fakes.resnet_run()
    assert run.bench is not None
    bench = replace(run.bench, speedup=speedup, low=speedup - 0.02, high=speedup + 0.03)
    accuracies = {**run.accuracies, "merged": Accuracy(accuracy, 5000)}
    return replace(run, bench=bench, accuracies=accuracies, unverified=(), **changes)


def plans() -> tuple[Planned, ...]:
    return (
        Planned(1.3, "mine-1.3x", at(1.34, 0.9110)),
        Planned(1.6, "mine-1.6x", at(1.66, 0.9020)),
        Planned(2.0, "mine-2x", at(2.07, 0.8640, failed_gates=("3 points are lost",))),
        Planned(50.0, "mine-50x", error="no network meets 0.01 ms; lower --speedup"),
    )


def written(plans: tuple[Planned, ...], folder: Path) -> tuple[str, str]:
    write_plans(plans, folder / "mine")
    return tuple((folder / "mine" / f"plans.{kind}").read_text() for kind in ("html", "md"))


def seen(html: str) -> str:
    outline = Outline()
    outline.feed(html)
    return " ".join("|".join(outline.text).split())


def test_it_says_which_plan_can_be_shipped_and_what_each_costs(tmp_path: Path) -> None:
    html, markdown = written(plans(), tmp_path)
    words = seen(html)
    assert "Which one can I ship?|1.6x|the fastest of 2 that can be: everything was" in words
    for row in (
        "1.3x|1.34x (1.32 to 1.37)|0.4135 ms|90.18 → 91.1 %|21 → 10|0.4200 ms|Yes",
        "2x|2.07x (2.05 to 2.10)|0.4135 ms|90.18 → 86.4 %|21 → 10|0.4200 ms|No",
        "50x|–|–|–|–|–|not reached",
    ):
        assert row in words
    assert "3 points are lost" in words and "no network meets 0.01 ms" in words
    assert f"run --run mine --runs-dir {tmp_path} --speedup 1.3,1.6,2,50" not in words
    assert f"--run mine --speedup 1.3,1.6,2,50 --runs-dir {tmp_path}" in words
    for cell in ("| [1.3x](../mine-1.3x/report.md) | 1.34x", "| 50x | – |"):
        assert cell in markdown


def test_each_reached_plan_links_to_its_report_and_no_other(tmp_path: Path) -> None:
    outline = Outline()
    outline.feed(written(plans(), tmp_path)[0])
    assert outline.links == [f"../mine-{s}x/report.html" for s in ("1.3", "1.6", "2")]
    assert outline.open == [] and outline.tags.count("h1") == 1


def test_the_picture_has_each_plan_at_its_place(tmp_path: Path) -> None:
    written(plans(), tmp_path)
    svg = (tmp_path / "mine" / "pictures" / "plans.svg").read_text()
    tips = re.findall(r'data-tip="([^"]*)"', svg)
    assert tips == [
        "1.3x: Yes; measured 1.34x, accuracy, % 91.1",
        "1.6x: Yes; measured 1.66x, accuracy, % 90.2",
        "2x: No; measured 2.07x, accuracy, % 86.4",
    ]
    spots = re.findall(r'<circle cx="([\d.]+)%" cy="([\d.]+)%" r="7"', svg)
    assert spots == sorted(spots, key=lambda spot: float(spot[0]))
    assert [float(y) for _, y in spots] == sorted(float(y) for _, y in spots)  # worse is lower
    assert "original 90.18" in svg


def test_without_labels_answers_that_were_kept_are_compared(tmp_path: Path) -> None:
    verify = {"least_agreement": 0.93, "images": 500, "on": "test images"}
    bare = [
        replace(p, report=replace(p.report, accuracies={}, verify=verify))
        for p in plans()[:2]
        if p.report
    ]
    html, _ = written(tuple(bare), tmp_path)
    assert "93 % of the answers" in html and "Answers kept, % at the speed-up" in html
    mixed = (*bare, plans()[2])  # one with labels: only what all have is drawn
    assert "Answers kept" not in written(mixed, tmp_path / "mixed")[0]


@pytest.mark.parametrize("reached", [0, 1])
def test_what_does_not_compare_is_not_drawn(tmp_path: Path, reached: int) -> None:
    html, markdown = written((*plans()[:reached], plans()[3]), tmp_path)
    assert "No two of these plans have figures that compare" in html
    assert "pictures/plans.svg" not in markdown


def test_no_plan_is_shipped_that_was_not_checked(tmp_path: Path) -> None:
    open_ends = tuple(
        replace(p, report=replace(p.report, bench=None)) for p in plans()[:2] if p.report
    )
    words = seen(written(open_ends, tmp_path)[0])
    assert "None as it is|none is proven (1.3x: not proven; 1.6x: not proven)" in words
    assert "The two networks were not benchmarked side by side." in words
    assert "✓" not in words and "Yes" not in words


def test_hostile_words_are_text(tmp_path: Path) -> None:
    hostile = (
        Planned(1.3, HOSTILE.replace("/", ""), at(1.3, 0.9, model=HOSTILE)),
        Planned(2, "x", error=HOSTILE),
    )
    html, markdown = written(hostile, tmp_path)
    outline = Outline()
    outline.feed(html)
    assert outline.tags.count("script") == 1 and "img" not in outline.tags
    assert "<img" not in re.sub(r"`[^`]*`", "", markdown)
