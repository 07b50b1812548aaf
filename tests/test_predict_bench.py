"""The page about predicted latency, from figures made up by hand: nothing is measured here."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any

import pytest

from tests.bench.bm_predict import sessions
from tests.bench.predict_page import CASES, Case, Figures, case_lines, page, summary
from trt_layermerge.core.jsonio import Json

EFFORT: Json = {"plans": 36, "rounds": 3, "size": 32, "seed": 0}
HEADER: Json = {
    "settings": {**EFFORT, "precision": "fp32", "device": "a device"},
    "cpu": "a processor",
    "cores": 2,
    "versions": {"python": "3.11", "torch": "2.4", "onnxruntime": "1.18"},
}
SESSION: Json = {"kind": "session", "commit": "abc", "load": 0.5}
MEASURED = [float(ms) for ms in range(30, 42)]


def case(name: str = "resnet18-full", **changes: Any) -> Case:
    """Twelve plans of an original of 100 ms, each predicted 2 % too slow."""
    found = Case(
        name=name,
        specs=60,
        table_s=7.4,
        fitted=25,
        promised={"median_error": 0.007, "worst_error": 0.058},
        original_ms=100.0,
        measured=MEASURED,
        predicted=[1.02 * ms for ms in MEASURED],
        alone=[1.3 * ms for ms in MEASURED],
        noisy=1,
        seconds=90.0,
        load=1.0,
    )
    return replace(found, **changes)


def with_plan(measured: float, predicted: float) -> Case:
    return case(
        measured=[measured, *MEASURED],
        predicted=[predicted, *case().predicted],
        alone=[predicted, *case().alone],
    )


def all_cases(*changed: Case) -> list[Case]:
    """Every case, the changed ones in the place of their names."""
    known = {c.name: c for c in changed}
    return [known.get(name, case(name)) for name in CASES]


def text(*cases: Case) -> str:
    return "\n".join(summary(cases))


def test_figures_by_hand() -> None:
    found = Figures.of([11.0, 18.0, 30.0], [10.0, 20.0, 30.0])
    assert astuple(found) == pytest.approx((3, 0.1, 0.1, 1.0))
    # Errors 50 %, 50 % and 0; ranks 1, 2, 3 against 2, 1, 3: 1 − 6 · 2 / (3 · 8).
    found = Figures.of([15.0, 10.0, 30.0], [10.0, 20.0, 30.0])
    assert astuple(found) == pytest.approx((3, 0.5, 0.5, 0.5))


def test_no_plans_reach_no_goal() -> None:
    assert Figures.of([], []).cells() == "0 | - | - | -"
    lines = text(case(measured=[], predicted=[], alone=[]))
    assert "- 10 test plans or more: **missed** in 1 of 1 cases: resnet18-full (no plans)." in lines
    for goal in ("median error of 5 %", "worst error of 10 %"):
        assert f"- {goal} or less: **missed** in 1 of 1 cases: resnet18-full (no plans)" in lines
    assert "- Spearman of 0.95 or more: **missed** in 1 of 1 cases" in lines


def test_goals_that_all_reach_are_said() -> None:
    lines = text(*all_cases())
    assert "missed" not in lines and "not measured" not in lines
    assert lines.count("reached in all 8 cases.") == 5
    assert "| resnet34, paper rules | 12 | 2.0% | 2.0% | 1.000 | 0 | - |" in lines
    assert "No test plan is predicted to be more than 5x as fast." in lines


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"predicted": [1.0504 * ms for ms in MEASURED]},
            "- median error of 5 % or less: **missed** in 1 of 8 cases: resnet18-full (5.04%).",
        ),
        (
            {"predicted": [1.1004 * MEASURED[0], *MEASURED[1:]]},
            "- worst error of 10 % or less: **missed** in 1 of 8 cases: resnet18-full (10.04%).",
        ),
        (
            {"predicted": MEASURED[::-1]},
            "- Spearman of 0.95 or more: **missed** in 1 of 8 cases: resnet18-full (-1.0000).",
        ),
        (
            {"measured": MEASURED[:9], "predicted": MEASURED[:9], "alone": MEASURED[:9]},
            "- 10 test plans or more: **missed** in 1 of 8 cases: resnet18-full (9).",
        ),
        (
            {"table_s": 180.1},
            "- table measured within 180 s: **missed** in 1 of 8 cases: resnet18-full (180.1 s).",
        ),
    ],
)
def test_a_goal_missed_is_said(changes: dict[str, Any], said: str) -> None:
    lines = text(*all_cases(case(**changes)))
    assert said in lines
    assert said not in text(*all_cases())


def test_plans_beyond_are_told_apart_and_counted_too() -> None:
    # 100 ms / 0.7 ms = 143x by prediction; its error is 75 %.
    lines = text(*all_cases(with_plan(0.4, 0.7)))
    assert "| resnet18, full rules | 12 | 2.0% | 2.0% | 1.000 | 1 | 75.0% |" in lines
    near, _, both = lines.partition("With them counted:")
    assert "1 of 97 test plans are predicted to be more than 5x as fast." in near
    assert "missed" not in near
    missed = "**missed** in 1 of 8 cases: resnet18-full (75.00%)."
    assert f"- worst error of 10 % or less: {missed}" in both
    assert "- median error of 5 % or less: reached in all 8 cases." in both


def test_prediction_decides_what_lies_beyond() -> None:
    assert with_plan(15.0, 20.0).far[0] is False  # 5x predicted, though 6.7x measured
    assert with_plan(25.0, 19.9).far[0] is True


def test_cases_that_are_not_measured_are_named() -> None:
    lines = text(*all_cases()[1:])
    assert "- **not measured: resnet18-paper**" in lines
    assert "reached in all 7 cases." in lines


def test_every_plan_is_on_the_page() -> None:
    found = page(HEADER, [SESSION, {"kind": "case", **with_plan(0.4, 0.7).row()}])
    assert "| 0.400 | 250.00x | 0.700 | +75.0% | beyond 5x |" in found
    for ms in MEASURED:
        assert f"| {ms:.3f} | {100 / ms:.2f}x | {1.02 * ms:.3f} | +2.0% |  |" in found
    assert "| sum of blocks alone | 12 | 30.0% | 30.0% | 1.000 |" in found
    assert "Made by `python -m tests.bench.bm_predict` at `abc`" in found


def test_a_recorded_case_reads_back() -> None:
    found = with_plan(0.4, 0.7)
    assert Case.of({"kind": "case", **found.row()}) == found
    assert case_lines(found)[0] == "## resnet18, full rules"


def test_sessions_without_a_measurement_do_not_count() -> None:
    first, idle, second = ({**SESSION, "commit": name} for name in "abc")
    measured: Json = {"kind": "case"}
    rows = [first, measured, measured, idle, second, measured]
    assert sessions(rows) == [first, second]
    assert sessions([*rows, idle]) == [first, second]
