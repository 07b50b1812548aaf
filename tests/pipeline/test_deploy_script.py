"""The example pipeline lets good networks through, and stops at each gate with its exit code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "pipeline" / "deploy.sh"
SABOTAGE = Path(__file__).with_name("sabotage.py")
TRAINED = "finetune: {preset: short, options: {epochs: 8, batch: 32}}"
"""Long enough that no accuracy is lost, with any of three seeds; two epochs lose some."""


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """Returns a copy of the project with its finished run, to be trained for longer."""
    copy = Path(shutil.copytree(finished, tmp_path / "project"))
    change_recipe(copy, TRAINED)
    return copy


def change_recipe(project: Path, change: str) -> None:
    """Puts a section of the recipe in place of the one of that name."""
    recipe, key = project / "tiny.yaml", change.partition(":")[0]
    lines = [x for x in recipe.read_text().splitlines() if not x.startswith(f"{key}:")]
    recipe.write_text("\n".join([*lines, change, ""]))


def deploy(
    project: Path, how: str = "none", *options: str, change: str = "", **settings: str
) -> subprocess.CompletedProcess[str]:
    """Runs the script on the tiny project; ``change`` is added to its recipe."""
    if change:
        change_recipe(project, change)
    tool = f"{sys.executable} {SABOTAGE} {how}"
    cache = {"XDG_CACHE_HOME": str(project / "cache"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", SCRIPT, str(project / "tiny.yaml"), "tiny", *options],
        env={**os.environ, **cache, "TRT_LAYERMERGE": tool, "PYTHON": sys.executable, **settings},
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )


def steps(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Returns the steps that were begun."""
    begun = [line for line in done.stderr.splitlines() if line.startswith("== ")]
    return [line.removeprefix("== ").partition(":")[0] for line in begun]


def test_a_good_network_gets_through(project: Path) -> None:
    done = deploy(project, "none", "triton")
    assert done.returncode == 0, done.stderr
    assert steps(done) == ["recipe", "verify", "bench", "package", "check"]
    assert done.stdout.splitlines()[-1] == "runs/tiny/deploy/triton"
    assert (project / "runs/tiny/deploy/triton/models/tiny_onnx/config.pbtxt").is_file()
    assert "files are as packaged" in done.stdout


def test_a_drop_of_accuracy_ends_with_5(project: Path) -> None:
    """Neither repaired nor trained: the network is poor."""
    done = deploy(project, change="finetune: {preset: none, start: original}")
    assert done.returncode == 5, done.stderr
    assert steps(done) == ["recipe", "verify"]
    assert "error: accuracy dropped by" in done.stderr
    assert "deploy.sh: stopped at verify, exit code 5" in done.stderr
    assert not (project / "runs/tiny/deploy").exists()


def test_a_slower_network_ends_with_6(project: Path) -> None:
    done = deploy(project, "slower")
    assert done.returncode == 6, done.stderr
    assert steps(done) == ["recipe", "verify", "bench"]
    assert "error: the merged network is slower than the original at fp32" in done.stderr
    assert not (project / "runs/tiny/deploy").exists()


def test_a_tampered_engine_ends_with_7(project: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    done = deploy(project, "tampered", change="build: {engine: tensorrt_rtx, precisions: [fp32]}")
    assert done.returncode == 7, done.stderr
    assert steps(done) == ["recipe", "verify"]
    assert "describes another engine" in done.stderr
    assert not (project / "runs/tiny/deploy").exists()


def test_usage() -> None:
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "RECIPE RUN [TARGET]" in done.stderr
