"""Several speed-ups at once: each gets a run of its own, on the tables of the one they share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.tiny import Recorder, files
from trt_layermerge.cli.main import main
from trt_layermerge.core.jsonio import Json, read_json
from trt_layermerge.errors import UsageError
from trt_layermerge.pipeline.api import run_stage
from trt_layermerge.pipeline.options import RunOptions
from trt_layermerge.pipeline.several import TABLES

QUICK = {"search.race_steps": 0, "search.samples": 0}


def searched(
    runs: Path, speedup: Any, name: str = "tiny", reporter: Recorder | None = None, **more: Any
) -> Json:
    overrides = {**QUICK, "search.speedup": speedup, **more}
    return run_stage("search", RunOptions(name, runs, overrides=overrides), reporter)


def test_each_speedup_gets_the_plan_that_it_would_get_alone(runs: Path) -> None:
    before = files(runs / "tiny")
    rows = searched(runs, [1.1, 1.3])["plans"]
    assert [row["run"] for row in rows] == ["tiny-1.1x", "tiny-1.3x"]
    assert files(runs / "tiny") == before
    alone = searched(runs, 1.3)
    assert read_json(runs / "tiny-1.3x" / "plan.json", "plan")["candidates"] == alone["candidates"]
    for row in rows:
        assert row["error"] is None
        assert row["measured_speedup"] >= row["speedup"]
        assert row["predicted_speedup"] > 1
        assert 0 < row["goes"]["convolutions"][0] < row["goes"]["convolutions"][1]
    assert 0 < rows[0]["loss"] < rows[1]["loss"]


def test_a_plan_is_carried_on_by_the_usual_commands(runs: Path) -> None:
    searched(runs, [1.1, 1.3])
    reporter = Recorder()
    options = RunOptions("tiny-1.1x", runs)
    assert run_stage("finetune", options, reporter)
    assert reporter.stages("done") == ("finetune",)
    again = Recorder()
    assert searched(runs, [1.1, 1.3], reporter=again)["plans"]
    assert again.stages("skip") == ("search", "search")


def test_what_is_not_reached_is_told_and_the_rest_goes_on(runs: Path) -> None:
    recorder = Recorder()
    rows = searched(runs, [50.0, 1.1], reporter=recorder)["plans"]
    assert [row["exit_code"] for row in rows] == [6, 0]
    assert "no network meets" in rows[0]["error"]
    assert "next" not in rows[0] and "next" in rows[1]
    assert any("tiny-50x: no network meets" in note for note in recorder.notes)


def test_a_whole_run_makes_the_tables_once_and_a_page_compares_all(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "run --run tiny --speedup 1.1,1.3,50 --set finetune.options.epochs=1"
    words += " --set search.race_steps=0 --set search.samples=0"
    code = main([*words.split(), "--runs-dir", str(runs)])
    out, err = capsys.readouterr()
    assert code == 6 and "tiny-50x: no network meets" in err
    assert "✓ importance" not in err and err.count("✓ report") == 2
    assert f"One page compares them: {runs}/tiny/plans.html" in "".join(out.split("\n"))
    page, twin = ((runs / "tiny" / f"plans.{kind}").read_text() for kind in ("html", "md"))
    for name in ("tiny-1.1x", "tiny-1.3x"):
        found = read_json(runs / name / "summary.json", "summary")
        asked = name.removeprefix("tiny-")
        row = next(line for line in twin.splitlines() if line.startswith(f"| [{asked}]"))
        assert f"(../{name}/report.md) | {found['speedup']:.2f}x (" in row
        shares = [f"{100 * found[side]['accuracy']:.4g}" for side in ("original", "merged")]
        assert f"| {' → '.join(shares)} % |" in row
        assert f'href="../{name}/report.html"' in page and (runs / name / "report.html").is_file()
    assert "| 50x | – | – | – | – | – | not reached |" in twin
    # The backend makes latencies up, so nothing is proven, and nothing has a tick.
    assert "None as it is" in page and "the backend fake makes its latencies up" in page
    assert "✓" not in page and "Yes" not in page


def test_too_high_a_wish_does_not_end_a_new_run_of_several(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"run {finished}/tiny.yaml --speedup 1.1,50 --set finetune.preset=none"
    words += " --set search.race_steps=0 --set search.samples=0 --json"
    assert main([*words.split(), "--runs-dir", str(tmp_path)]) == 6
    reached, missed = json.loads(capsys.readouterr().out)["plans"]
    assert reached["error"] is None and "no network meets" in missed["error"]


def test_a_run_without_tables_says_so_by_its_own_name(runs: Path) -> None:
    (runs / "tiny" / "importance.jsonl").unlink()
    with pytest.raises(UsageError, match=r"the run 'tiny' has no importance\.jsonl yet"):
        searched(runs, [1.1, 1.3])
    assert not (runs / "tiny-1.1x").exists()


@pytest.mark.parametrize(
    ("name", "speedups", "words"),
    [("n" * 197, [1.1, 1.3], "name of a run"), ("tiny", [1.25, 1.2500001], "the same to six")],
)
def test_runs_that_could_not_be_named_are_refused_before_anything_is_done(
    runs: Path, name: str, speedups: Any, words: str
) -> None:
    before = files(runs)
    with pytest.raises(UsageError, match=words):
        searched(runs, speedups, name)
    assert files(runs) == before


@pytest.mark.parametrize("wanted", [[], [1.0, 2.0], ["fast", 2.0], [float("nan")]])
def test_what_is_no_speedup_is_refused(runs: Path, wanted: list[Any]) -> None:
    with pytest.raises(UsageError, match=r"are no speed-ups"):
        searched(runs, wanted)


def test_a_budget_in_ms_contradicts_several_speedups(runs: Path) -> None:
    with pytest.raises(UsageError, match=r"leave out --budget-ms"):
        searched(runs, [1.1, 1.3], **{"search.budget_ms": 1.0})


def test_the_tables_are_those_of_every_stage_before_the_search() -> None:
    assert TABLES == ("inspect", "latency", "importance")
