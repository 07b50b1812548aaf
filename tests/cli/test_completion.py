"""Completion by the shell, and help that says what a name stands for and what a verb uses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trt_layermerge.cli.app import USES
from trt_layermerge.cli.main import main
from trt_layermerge.finetune.recipe import MEANINGS
from trt_layermerge.pipeline.options import PACKAGE, STAGES


def shell(home: Path, *words: str, **variables: str) -> str:
    """Returns what the command prints, in a home of its own."""
    detection = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # a worker runs in no shell
    place = {**os.environ, **detection, "HOME": str(home), **variables}
    command = [sys.executable, "-m", "trt_layermerge", *words]
    done = subprocess.run(command, env=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_completion_is_installed_and_completes(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_text("# mine\n")
    shell(tmp_path, "--install-completion", "bash")
    kept = (tmp_path / ".bashrc").read_text()
    assert kept.startswith("# mine\n") and "completion" in kept
    asked = {"_TRT_LAYERMERGE_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    assert shell(tmp_path, COMP_WORDS="trt-layermerge sea", **asked).split() == ["search"]
    asked["COMP_CWORD"] = "2"
    found = shell(tmp_path, COMP_WORDS="trt-layermerge search --sp", **asked)
    assert found.split() == ["--speedup"]


@pytest.mark.parametrize("passed", [{}, {"COMP_WORDS": "trt-layermerge sea", "COMP_CWORD": "x"}])
def test_a_shell_that_passes_nonsense_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, passed: dict[str, str]
) -> None:
    monkeypatch.delenv("COMP_WORDS", raising=False)
    for name, value in {"_TRT_LAYERMERGE_COMPLETE": "complete_bash", **passed}.items():
        monkeypatch.setenv(name, value)
    assert main([]) == 2
    err = capsys.readouterr().err
    assert "unset that variable" in err and "This is a bug" not in err


def test_help_says_what_each_preset_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["finetune", "--help"]) == 0
    said = capsys.readouterr().out
    assert [name for name, what in MEANINGS.items() if f"{name}: {what}" not in said] == []


@pytest.mark.parametrize(
    ("verb", "listed", "not_listed"),
    [
        ("merge", ["--run", "--set", "--json"], ["--train", "--backend", "--seed", "--model"]),
        ("latency", ["--backend", "--model", "--ssh"], ["--train", "--device"]),
        ("build", ["--backend", "--precision", "--batch"], ["--train", "--device"]),
        ("run", ["--train", "--backend", "--model", "--device"], []),
    ],
)
def test_help_lists_what_a_verb_uses(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    listed: list[str],
    not_listed: list[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([verb, "--help"]) == 0
    words = capsys.readouterr().out.split()
    assert [name for name in listed if name not in words] == []
    assert [name for name in not_listed if name in words] == []


def test_every_stage_says_what_it_uses() -> None:
    assert USES.keys() == {*STAGES, PACKAGE}
