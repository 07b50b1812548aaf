"""``python -m benchmarks``: what counts as slower, and what its baseline covers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import bm_speed
from benchmarks.bm_speed import PAGE, compare, measure
from benchmarks.results import Page
from benchmarks.workloads import REFERENCE, WORKLOADS, Workload
from trt_layermerge.core.jsonio import Json, read_lines
from trt_layermerge.errors import UsageError

BEFORE = {"reference": 10.0, "search": 4.0, "export": 100.0}


def slower(found: dict[str, float]) -> list[str]:
    return [c.name for c in compare(found, BEFORE, "reference") if c.slower]


def test_a_machine_of_another_speed_changes_nothing() -> None:
    for factor in (0.25, 1.0, 5.0):
        found = compare({n: ms * factor for n, ms in BEFORE.items()}, BEFORE, "reference")
        assert [c.ratio for c in found] == pytest.approx([1.0, 1.0, 1.0])
        assert not any(c.slower for c in found)


def test_more_than_twice_as_long_is_slower() -> None:
    assert slower({**BEFORE, "search": 8.0}) == []
    assert slower({**BEFORE, "search": 8.1}) == ["search"]
    assert slower({"reference": 5.0, "search": 4.0, "export": 101.0}) == ["export"]


def test_a_comparison_tells_name_both_times_and_ratio() -> None:
    found = {c.name: str(c) for c in compare({**BEFORE, "search": 12.0}, BEFORE, "reference")}
    assert found["search"].split() == ["search", "12.000", "ms", "4.000", "ms", "3.00x", "SLOWER"]
    assert found["export"].split() == ["export", "100.000", "ms", "100.000", "ms", "1.00x"]


def test_a_baseline_of_other_work_is_refused() -> None:
    with pytest.raises(UsageError, match=r"other pieces of work \(export, merge\)"):
        compare({"reference": 10.0, "search": 4.0, "merge": 1.0}, BEFORE, "reference")


def test_the_time_of_an_item_is_the_share_of_the_best_repeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = iter([0.0, 1.0, 5.0, 5.5])
    monkeypatch.setattr("time.process_time", lambda: next(ticks))
    monkeypatch.setattr(bm_speed, "REPEATS", 2)
    done: list[str] = []
    work = Workload("words", lambda: (lambda: done.append("word"), 4))
    assert list(measure([work])) == [{"name": "words", "ms": 125.0, "items": 4, "repeats": 2}]
    assert len(done) == 3  # once before the clock counts


def test_the_baseline_covers_what_is_measured() -> None:
    _, rows = read_lines(PAGE.data, PAGE.name)
    assert [row["name"] for row in rows] == [workload.name for workload in WORKLOADS]


@pytest.mark.parametrize(("factor", "code"), [(1.5, 0), (2.5, 1)])
def test_the_exit_code_says_whether_something_is_slower(
    factor: float, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = Page(PAGE.name, PAGE.text, tmp_path)

    def rows(times: float) -> list[Json]:
        figures = {REFERENCE.name: 10.0, "search": 4.0 * times}
        return [{"name": n, "ms": ms, "items": 1, "repeats": 3} for n, ms in figures.items()]

    page.record({}, rows(1.0))
    monkeypatch.setattr(bm_speed, "PAGE", page)
    monkeypatch.setattr(bm_speed, "measure", lambda _: rows(factor))
    assert bm_speed.main([]) == code
    assert bm_speed.main(["--record"]) == 0
    assert read_lines(page.data, page.name)[1] == rows(factor)
