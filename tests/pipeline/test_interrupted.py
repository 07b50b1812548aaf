"""Runs that are interrupted, at every stage and at any moment, and go on where they stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from tests.pipeline import tiny
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.tables import ImportanceEntry
from trt_layermerge.importance.calibrate import CalibrateScorer
from trt_layermerge.pipeline.options import STAGES
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.stage import Stage

ROOT = Path(__file__).parents[2]
SAME = ("latency.jsonl", "importance.jsonl", "plan.json", "relaxed.safetensors", "summary.json")


def content(folder: Path, names: tuple[str, ...] = SAME) -> dict[str, bytes]:
    return {name: (folder / "tiny" / name).read_bytes() for name in names}


def interrupt_before_it_is_noted(patch: pytest.MonkeyPatch, name: str) -> None:
    """Interrupts a stage when its files are written, but not yet recorded as up to date."""
    module = import_module(f"trt_layermerge.pipeline.stages.{name}")
    stage: Stage = module.STAGE

    def work(run: Run) -> tuple[str, ...]:
        stage.run(run)
        raise KeyboardInterrupt

    patch.setattr(module, "STAGE", replace(stage, run=work))


def test_a_run_interrupted_at_every_stage_ends_as_if_it_never_was(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: Path | None = finished / "tiny.yaml"
    for number, name in enumerate(STAGES):
        told = tiny.Recorder(interrupt_at=name)
        with pytest.raises(KeyboardInterrupt):
            tiny.run(tmp_path, recipe, told)
        assert told.stages("skip") == STAGES[: max(0, number - 1)]
        assert told.stages("done") == STAGES[max(0, number - 1) : number]

        told = tiny.Recorder()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_before_it_is_noted(patch, name)
            tiny.run(tmp_path, recipe, told)
        recipe = None if number else recipe  # what is inspected and checked is remembered
        assert told.stages("skip") == STAGES[:number]
        assert told.stages("done") == ()
    _, told = tiny.run(tmp_path)
    assert told.stages("skip") == STAGES[:-1]
    assert content(tmp_path) == content(finished / "runs")


def test_interrupted_scoring_keeps_what_was_scored(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tiny.Recorder(interrupt_at="importance")
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path, finished / "tiny.yaml", told)
    scored: list[Candidate] = []
    entry, breaks = CalibrateScorer.entry, 7

    def counted(
        self: CalibrateScorer, candidate: Candidate, first: bool = False
    ) -> ImportanceEntry:
        if len(scored) == breaks:
            raise KeyboardInterrupt
        scored.append(candidate)
        return entry(self, candidate, first)

    monkeypatch.setattr(CalibrateScorer, "entry", counted)
    table = tmp_path / "tiny" / "importance.jsonl"
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path, only_stage="importance")
    assert len(table.read_text().splitlines()) == 1 + breaks
    with table.open("a") as file:
        file.write('{"start": 3, "end"')  # as a killed process leaves it
    breaks = -1
    tiny.run(tmp_path, only_stage="importance")
    assert content(tmp_path, ("importance.jsonl",)) == content(
        finished / "runs", ("importance.jsonl",)
    )
    assert len({c.key for c in scored}) == len(scored) == len(table.read_text().splitlines()) - 1


def test_interrupted_training_goes_on_after_the_last_epoch(finished: Path, tmp_path: Path) -> None:
    told = tiny.Recorder(interrupt_while="fine-tuning")
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path, finished / "tiny.yaml", told)
    assert told.stages("done")[-1:] == ("search",)
    assert not (tmp_path / "tiny" / "relaxed.safetensors").exists()
    _, told = tiny.run(tmp_path)
    epochs = [done for label, done in told.steps if label == "fine-tuning"]
    assert epochs and min(epochs) >= 1  # the first epoch is not trained again
    assert content(tmp_path) == content(finished / "runs")
    assert len((tmp_path / "tiny" / "finetune.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("work", ["measuring", "building networks", "scoring finalists"])
def test_work_interrupted_in_its_middle_is_taken_up_again(
    finished: Path, tmp_path: Path, work: str
) -> None:
    told = tiny.Recorder(interrupt_while=work)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path, finished / "tiny.yaml", told)
    tiny.run(tmp_path)
    assert content(tmp_path) == content(finished / "runs")


def stopped_run(recipe: Path, runs: Path, seconds: float, by: signal.Signals) -> tuple[int, str]:
    """Starts the command and signals it some seconds after its first stage began.

    Returns its exit code and what it printed last.
    """
    command = (sys.executable, "-m", "trt_layermerge", "run", str(recipe), "-v")
    with subprocess.Popen(
        [*command, "--runs-dir", str(runs)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Started from a background job, the tests would hand down that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert "inspect" in first
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(by)
        rest = process.stderr.read()
        return process.wait(), (rest or first).splitlines()[-1]


def test_a_run_killed_at_random_moments_ends_with_the_same_plan(
    finished: Path, tmp_path: Path
) -> None:
    moments = random.Random(0)
    recipe = finished / "tiny.yaml"
    codes = [
        stopped_run(recipe, tmp_path, moments.uniform(0.05, 0.7), signal.SIGKILL)[0]
        for _ in range(3)
    ]
    # A fast machine may be done before the last one; then it has nothing to be killed for.
    assert -signal.SIGKILL in codes and {*codes} <= {0, -signal.SIGKILL}
    for path in (tmp_path / "tiny").glob("*.json"):
        json.loads(path.read_text())  # whole files only
    summary, _ = tiny.run(tmp_path, recipe)
    expected = json.loads((finished / "runs" / "tiny" / "plan.json").read_text())
    found = json.loads((tmp_path / "tiny" / "plan.json").read_text())
    assert found["candidates"] == expected["candidates"]
    assert summary["merged"]["latency_ms"] <= summary["budget_ms"]
    assert tiny.run(tmp_path)[1].stages("skip") == STAGES


def test_ctrl_c_says_that_the_same_command_continues(finished: Path, tmp_path: Path) -> None:
    for attempt in range(3):  # Python drops an interrupt that meets a destructor, and goes on
        runs = tmp_path / str(attempt)
        code, last = stopped_run(finished / "tiny.yaml", runs, 0.3, signal.SIGINT)
        if code != 0:
            break
    assert last == "error: interrupted; type the same command to continue"
    # A shell says 130 to both: where the signal met code that Python compiles from text (a class of
    # ``dataclasses``), Python ends itself by the signal, though it was caught.
    assert code in (130, -signal.SIGINT)
