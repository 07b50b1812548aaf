"""What a search says at the command line of its choice, and of a goal that nothing meets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.pipeline import tiny
from trt_layermerge.cli.main import main


def searched(runs: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["search", "--run", "tiny", "--runs-dir", str(runs), *words])
    return code, *capsys.readouterr()


def test_why_a_faster_plan_than_asked_for_is_taken_is_said(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    code, out, err = searched(runs, capsys, "--speedup", "1.2", "--set", "search.race_steps=0")
    assert code == 0
    notes = json.loads((runs / "tiny" / "plan.json").read_text())["notes"]
    assert re.match(r"of \d+ plans within the budget it loses least as a whole", notes["why"])
    assert f"taken because {notes['why']}" in " ".join(out.split())
    taken = notes["measured_speedup"]
    assert taken > 1.2 / 0.9, "choose a goal that is exceeded by far"
    assert f"{taken:.2f}x is taken where 1.20x was asked for: {notes['why']}" in err


def test_a_plan_near_its_budget_needs_no_excuse(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = searched(runs, capsys, "--speedup", "1.3")
    assert code == 0 and "was asked for" not in err


@pytest.mark.parametrize(
    ("narrowed", "advised"),
    [
        ("", None),
        ("--mode depth", "--mode layermerge"),
        ("--set search.kinds=[identity]", "--set search.kinds=[compose,fit,identity"),
        ("--set search.limits.max_units=2", "--set search.limits.max_units=6"),
        ("--rules paper", "--rules full"),
    ],
)
def test_more_candidates_are_advised_only_where_there_are_more(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    narrowed: str,
    advised: str | None,
) -> None:
    text = tiny.RECIPE.replace("max_units: 3", "max_units: 6")
    for name in ("nets.py", "tiny.safetensors", "train.npz", "val.npz", "test.npz"):
        (tmp_path / name).symlink_to(finished / name)
    (tmp_path / "tiny.yaml").write_text(text)
    words = ["run", str(tmp_path / "tiny.yaml"), "--runs-dir", str(tmp_path / "runs")]
    assert main([*words, "--speedup", "50", *narrowed.split()]) == 6
    err = capsys.readouterr().err
    assert "raise --budget-ms or lower --speedup" in err
    assert ("allow more candidates" in err) == (advised is not None)
    assert advised is None or advised in err
