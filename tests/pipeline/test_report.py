"""What a run's files become on its page: plans to choose from, all on the clock of the bench."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline import tiny
from trt_layermerge.errors import AccuracyGateError
from trt_layermerge.pipeline.api import run_stage
from trt_layermerge.pipeline.options import RunOptions


def choices(runs: Path) -> list[list[str]]:
    """Returns the cells of the table of plans, the fastest first."""
    page = (runs / "tiny" / "report.md").read_text()
    table = page.partition("All of these plans:\n\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in table.splitlines()[2:]]


def milliseconds(rows: list[list[str]]) -> list[float]:
    return [float(row[1].removesuffix(" ms")) for row in rows]


def slowed(value: Any, factor: float) -> Any:
    """Returns a JSON value with all its latencies multiplied."""
    if isinstance(value, list):
        return [slowed(inner, factor) for inner in value]
    if not isinstance(value, dict):
        return value
    return {
        key: factor * inner
        if key.endswith("_ms") and isinstance(inner, float)
        else slowed(inner, factor)
        for key, inner in value.items()
    }


def test_every_plan_of_a_small_frontier_can_be_chosen(finished: Path) -> None:
    folder = finished / "runs" / "tiny"
    frontier = json.loads((folder / "frontier.json").read_text())
    assert [[row["predicted_ms"], row["score"]] for row in frontier["plans"]] == frontier["points"]
    rows = choices(finished / "runs")
    found = milliseconds(rows)
    assert found == sorted(found)
    assert rows[-1][3:] == ["0", "7 → 7", "nothing"]
    assert len(rows) == len(frontier["points"])  # the chosen plan is one of them


def test_predictions_follow_the_clock_of_the_bench(runs: Path) -> None:
    before = choices(runs)
    path = runs / "tiny" / "bench.json"
    body = slowed(json.loads(path.read_text()), 8.0)
    body.pop("schema")
    tiny.replace_output(path, "bench", body)
    summary = run_stage("report", RunOptions("tiny", runs))
    after = choices(runs)
    # Printed to 0.1 µs, of at least 13 µs: within half a digit of either.
    expected = [8 * value for value in milliseconds(before)]
    assert milliseconds(after) == pytest.approx(expected, abs=8 * 0.00005 + 0.00005)
    keep = (0, 3, 4, 5)  # gain, loss, layers and what goes
    assert [[row[i] for i in keep] for row in after] == [[row[i] for i in keep] for row in before]
    measured = [row[2] for row in after if row[1] == f"{summary['predicted_ms']:.4f} ms"]
    assert f"{summary['merged']['latency_ms']:.4f} ms" in measured


def test_a_frontier_without_plans_has_a_page_without_a_choice(runs: Path) -> None:
    path = runs / "tiny" / "frontier.json"
    body = json.loads(path.read_text())
    del body["schema"], body["plans"]
    tiny.replace_output(path, "frontier", body)
    run_stage("report", RunOptions("tiny", runs))
    assert choices(runs) == []


def test_a_failed_gate_is_the_title_and_the_first_answer(runs: Path) -> None:
    shutil.rmtree(runs / "tiny" / "pictures")
    asked = {"finetune.start": "original", "finetune.preset": "none"}
    with pytest.raises(AccuracyGateError):
        tiny.run(runs, overrides={**asked, "verify.max_accuracy_drop": 0.0})
    page = (runs / "tiny" / "report.md").read_text()
    assert page.startswith("# tiny: beyond its limits\n")
    assert "**Can I ship it? No**: accuracy dropped by" in page
