"""Starts and courses of the tiny project: without labels, without training, and by their names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.pipeline import tiny
from trt_layermerge.core.jsonio import read_json, read_lines
from trt_layermerge.errors import UsageError
from trt_layermerge.merge import Annealed
from trt_layermerge.pipeline.api import open_run, run_stage
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.pipeline.recipe import load_recipe

RECONSTRUCT = {
    "finetune.preset": "none",
    "finetune.reconstruct.steps": 30,
    "finetune.reconstruct.images": 120,
    "finetune.reconstruct.batch": 32,
}


def options(runs: Path, **overrides: object) -> RunOptions:
    return RunOptions("tiny", runs, overrides=dict(overrides))


def finetuned(runs: Path, *, merge: bool = True, **overrides: object) -> dict[str, Any]:
    """Returns the result of ``finetune``; what it made merges exactly."""
    result = run_stage("finetune", options(runs, **overrides))
    if merge:
        assert run_stage("merge", options(runs, **overrides))["ok"]
    return result


def start_of(runs: Path) -> dict[str, Any]:
    header, _ = read_lines(runs / "tiny" / "finetune.jsonl", "finetune")
    return header


@pytest.fixture
def plain(finished: Path, tmp_path: Path) -> Path:
    """A project whose images have no labels: an npz of images alone, and a flat folder."""
    project = tmp_path / "plain"
    shutil.copytree(finished, project, ignore=shutil.ignore_patterns("runs"))
    images = np.load(finished / "train.npz")["images"]
    np.savez(project / "train.npz", images=images)
    (project / "val").mkdir()
    for number, image in enumerate(np.load(finished / "val.npz")["images"]):
        Image.fromarray(image).save(project / "val" / f"{number:03}.png")
    recipe = (project / "tiny.yaml").read_text()
    recipe = recipe.replace("npz:val.npz", "images:val").replace("  test: npz:test.npz\n", "")
    (project / "tiny.yaml").write_text(recipe)
    return project


def test_a_whole_run_needs_no_labels(plain: Path) -> None:
    runs = plain / "runs"
    summary, told = tiny.run(runs, plain / "tiny.yaml", overrides=RECONSTRUCT)
    assert summary["merged"]["accuracy"] is None and summary["original"]["accuracy"] is None
    assert summary["speedup"] > 1
    header, rows = read_lines(runs / "tiny" / "finetune.jsonl", "finetune")
    assert header["start_val_accuracy"] is None and header["original_val_accuracy"] is None
    assert header["reconstruction"]["kept"] and rows == []
    assert any("no labels" in note for note in told.notes)
    verified = read_json(runs / "tiny" / "verify.json", "verify")
    assert any("no labels" in reason for reason in verified["unverified"])
    result = finetuned(runs, **{"finetune.preset": "short"})
    assert (result["epochs"], result["val_accuracy"]) == (2, None)
    header, _ = read_lines(runs / "tiny" / "finetune.jsonl", "finetune")
    assert header["recipe"]["distill_weight"] == 1.0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"importance.method": "finetune"}, "choose calibrate"),
        ({"calibrate.qat_epochs": 1}, "qat_epochs"),
        ({"verify.max_accuracy_drop": 0.01}, "is a limit on accuracy"),
        ({"verify.max_accuracy_drop": 0.01, "data.test": "npz:train.npz"}, "is a limit on"),
    ],
)
def test_what_needs_labels_is_refused_before_anything_is_measured(
    plain: Path, overrides: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plain)
    with pytest.raises(UsageError, match=words):
        tiny.run(plain / "runs", plain / "tiny.yaml", overrides=overrides)
    assert not (plain / "runs" / "tiny" / "latency.jsonl").exists()


def test_reconstruction_comes_between_repair_and_training(runs: Path) -> None:
    finetuned(runs, **{**RECONSTRUCT, "finetune.reconstruct.steps": 0})
    repaired = load_file(runs / "tiny" / "relaxed.safetensors")
    assert start_of(runs)["reconstruction"] is None
    result = finetuned(runs, **RECONSTRUCT)["reconstruction"]
    assert result["error_after"] < result["error_before"] and result["images"] == 90
    rebuilt = load_file(runs / "tiny" / "relaxed.safetensors")
    assert repaired.keys() == rebuilt.keys()
    assert any(not (repaired[k] == rebuilt[k]).all() for k in repaired)
    again = finetuned(runs, **RECONSTRUCT)["reconstruction"]
    assert again == result


def test_a_reconstruction_that_does_not_help_is_undone(runs: Path) -> None:
    finetuned(runs, **{**RECONSTRUCT, "finetune.reconstruct.steps": 0})
    repaired = load_file(runs / "tiny" / "relaxed.safetensors")
    reporter = tiny.Recorder()
    wild = {**RECONSTRUCT, "finetune.reconstruct.lr": 3.0, "finetune.reconstruct.steps": 3}
    result = run_stage("finetune", options(runs, **wild), reporter)["reconstruction"]
    assert not result["kept"] and result["error_after"] > result["error_before"]
    assert any("was undone" in note for note in reporter.notes)
    left = load_file(runs / "tiny" / "relaxed.safetensors")
    assert all((repaired[k] == left[k]).all() for k in repaired)
    diverging = {**wild, "finetune.reconstruct.lr": 1e12, "finetune.reconstruct.steps": 60}
    result = run_stage("finetune", options(runs, **diverging), reporter)["reconstruction"]
    assert result["error_after"] is None and not result["kept"]
    left = load_file(runs / "tiny" / "relaxed.safetensors")
    means = {k for k in repaired if "running_" in k}  # taken behind it, to the last bit or so
    assert all((repaired[k] == left[k]).all() for k in repaired.keys() - means)
    assert all((repaired[k] - left[k]).abs().max() <= 1e-6 for k in means)


@pytest.mark.parametrize("start", ["original", "repair"])
def test_collapsed_blocks_are_trained_as_single_convolutions(runs: Path, start: str) -> None:
    overrides = {"finetune.start": start, "finetune.train": "collapsed"}
    finetuned(runs, **overrides)
    weights = load_file(runs / "tiny" / "relaxed.safetensors")
    assert not any(".units." in name for name in weights)
    session = open_run(None, options(runs, **overrides), NullReporter()).session
    relaxed = session.filled("relaxed.safetensors")
    assert relaxed.state_dict().keys() == weights.keys()
    run_stage("export", options(runs, **overrides))
    relaxed_start = {**overrides, "finetune.train": "relaxed", "finetune.preset": "none"}
    finetuned(runs, **relaxed_start)
    before = start_of(runs)["start_val_accuracy"]
    finetuned(runs, **{**relaxed_start, "finetune.train": "collapsed"})
    assert start_of(runs)["start_val_accuracy"] == before


def test_annealed_activations_are_gone_in_the_end(runs: Path) -> None:
    overrides = {"finetune.start": "original", "finetune.anneal": 0.5}
    run = open_run(None, options(runs, **overrides), NullReporter())
    network = run.session.relax()
    run.session.repair(run.train)
    schedule = run.session.teaching(run.train)._schedule(network, 2)
    held = [m for m in network.modules() if isinstance(m, Annealed)]
    assert schedule is not None and held
    for share, linearity in ((0.25, 0.5), (0.5, 1.0), (1.0, 1.0)):
        schedule(share)
        assert {m.linearity for m in held} == {linearity}
    assert finetuned(runs, **overrides)["epochs"] == 2
    trained = load_file(runs / "tiny" / "relaxed.safetensors")
    finetuned(runs, **{**overrides, "finetune.anneal": 0.0})
    at_once = load_file(runs / "tiny" / "relaxed.safetensors")
    assert trained.keys() == at_once.keys()
    assert any(not (trained[k] == at_once[k]).all() for k in trained)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"anneal": 0.3}, "anneal needs start: original"),
        ({"anneal": 0.3, "start": "original", "train": "collapsed"}, "linear from the start"),
        ({"anneal": 0.3, "start": "original", "preset": "none"}, "anneal needs a training"),
        ({"anneal": 1.3, "start": "original"}, "less than or equal to 1"),
        ({"reconstruct.scope": "all"}, "each"),
        ({"reconstruct.steps": -1}, "greater than or equal to 0"),
    ],
)
def test_courses_that_make_no_sense_are_refused(values: dict[str, object], words: str) -> None:
    overrides = {f"finetune.{key}": value for key, value in values.items()}
    with pytest.raises(UsageError, match=words):
        load_recipe(None, {"model.name": "torchvision:resnet18", **overrides})
