"""``runs`` and ``status``, and runs that are named by their path."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipeline import tiny
from trt_layermerge.cli.main import main
from trt_layermerge.pipeline.options import STAGES
from trt_layermerge.session.session import Session


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def states(capsys: pytest.CaptureFixture[str], runs: Path) -> dict[str, str]:
    rows = told(capsys, "status", "--run", str(runs / "tiny"))["stages"]
    return {row["stage"]: row["state"] for row in rows}


def test_a_finished_run_is_a_row_with_what_it_gained_and_cost(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copytree(runs / "tiny", runs / "begun")
    for name in ("report.html", "report.md", "summary.json", "state.json"):
        (runs / "begun" / name).unlink()
    (runs / "no run").mkdir()
    before = tiny.files(runs)
    found = told(capsys, "runs", "--runs-dir", str(runs))
    assert found["folder"] == str(runs)
    begun, done = found["runs"]
    summary = json.loads((runs / "tiny" / "summary.json").read_text())
    assert done["network"].endswith("nets.py:tiny")
    assert (done["reached"], done["verdict"]) == ("report", "finished, within its limits")
    assert done["speedup"] == summary["speedup"]
    drop = summary["original"]["accuracy"] - summary["merged"]["accuracy"]
    assert done["accuracy_drop"] == pytest.approx(drop)
    assert (begun["reached"], begun["verdict"]) == (None, "not finished: inspect comes next")
    assert main(["runs", "--runs-dir", str(runs)]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert f"{summary['speedup']:.2f}x" in words and "of accuracy" in words and "tiny" in words
    assert tiny.files(runs) == before


def test_a_folder_without_runs_says_how_to_begin_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert f"no runs in {tmp_path}/runs" in words and "run RECIPE.yaml" in words
    assert not list(tmp_path.iterdir())


def test_stages_are_done_then_stale_when_what_made_them_changed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Path(shutil.copytree(finished, tmp_path / "project"))
    runs = project / "runs"
    tiny.run(runs, project / "tiny.yaml")  # its files are others by name
    assert set(states(capsys, runs).values()) == {"done"}
    images = np.load(project / "test.npz")
    np.savez(project / "test.npz", images=images["images"], labels=(images["labels"] + 1) % 4)
    found = states(capsys, runs)
    assert {name for name in STAGES if found[name] == "stale"} == {"verify", "report"}
    result = told(capsys, "status", "--run", str(runs / "tiny"))
    why = {row["stage"]: row["why"] for row in result["stages"]}
    assert "test" in why["verify"] and why["report"] == "verify is stale"
    assert result["verdict"] == "out of date from verify"
    assert result["next"] == f"trt-layermerge run --run tiny --runs-dir {runs}"
    (runs / "tiny" / "plan.json").unlink()
    assert states(capsys, runs)["search"] == "stale"
    assert main(["status", "--run", str(runs / "tiny")]) == 0
    assert "plan.json is gone" in " ".join(capsys.readouterr().out.split())


def test_what_failed_is_told_until_it_is_done(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ("--run", "tiny", "--runs-dir", str(runs), "--speedup", "1.2")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "merge", full)
        assert main(["run", *typed]) == 4
    capsys.readouterr()
    found = told(capsys, "status", *typed[:4])
    (row,) = [row for row in found["stages"] if row["state"] == "failed"]
    assert row["stage"] == "merge" and "No space left on device" in row["why"]
    assert found["verdict"] == "failed in merge" and found["reached"] == "finetune"
    assert main(["run", *typed]) == 0
    capsys.readouterr()
    assert set(states(capsys, runs).values()) == {"done"}
    assert not (runs / "tiny" / "failed.json").exists()


def test_a_limit_that_is_exceeded_is_a_failure(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ("--run", "tiny", "--runs-dir", str(runs))
    assert main(["run", "--set", "verify.max_latency_ms=1e-9", *typed]) == 6
    capsys.readouterr()
    found = told(capsys, "status", *typed)
    assert found["verdict"] == "failed in bench"
    (row,) = [row for row in found["stages"] if row["state"] == "failed"]
    assert row["stage"] == "bench" and "1e-09 ms are allowed" in row["why"]


@pytest.mark.parametrize("path", ["runs/tiny", "runs/tiny/", "{here}/runs/tiny", "./runs/tiny"])
def test_a_path_is_as_good_as_a_name(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(runs.parent)
    place = path.format(here=runs.parent)
    wanted = told(capsys, "merge", "--run", "tiny")
    assert told(capsys, "merge", "--run", place) == wanted
    assert told(capsys, "run", "--run", place, "--only", "merge") == wanted
    monkeypatch.chdir(runs / "tiny")
    assert told(capsys, "merge", "--run", ".") == wanted


def test_a_path_and_a_folder_of_runs_contradict_each_other(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", "--run", str(runs / "tiny"), "--runs-dir", str(runs)]) == 2
    assert "type a name with --runs-dir, or the path alone" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["merge", "status", "run"])
def test_a_run_that_is_not_there_is_looked_for_in_a_whole_folder(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.chdir(runs.parent)
    assert main([verb, "--run", "tinny"]) == 2
    err = capsys.readouterr().err
    assert f"there is no run 'tinny' in {os.path.abspath('runs')}" in err
    assert "did you mean tiny" in err
    assert main([verb, "--run", "other"]) == 2
    assert "there are tiny" in capsys.readouterr().err
