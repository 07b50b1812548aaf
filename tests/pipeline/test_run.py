"""A whole run of a tiny project: what it leaves, what it does again, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from tests.pipeline import tiny
from tests.pipeline.golden import forms_of
from trt_layermerge.backends import get_backend
from trt_layermerge.errors import CorruptInputError, InfeasibleBudgetError, UsageError
from trt_layermerge.models.networks import load_network
from trt_layermerge.pipeline.api import run_stage
from trt_layermerge.pipeline.options import STAGES, RunOptions

PROMISED = """\
graph.json candidates.jsonl latency.jsonl importance.jsonl frontier.json plan.json \
relaxed.safetensors finetune.jsonl merged.safetensors certificate.json original.onnx \
model.onnx bench.json verify.json report.html report.md summary.json"""
ORIGINAL_CONVS, ORIGINAL_ACTIVATIONS = 8, 7


def after(stage: str) -> tuple[str, ...]:
    """Returns a stage and all that follow."""
    return STAGES[STAGES.index(stage) :]


def read(runs: Path, name: str) -> dict[str, Any]:
    return json.loads((runs / "tiny" / name).read_text())


def model_ms(path: Path) -> float:
    """Returns what the fake device says that a model takes, asked directly."""
    with get_backend("fake").open(path.read_bytes()) as runner:
        return runner.time_burst(1)[0]


def images(finished: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns test images as the recipe preprocesses them, and labels."""
    archive = np.load(finished / "test.npz")
    pixels = archive["images"].transpose(0, 3, 1, 2).astype(np.float32) / 255
    return (pixels - np.float32(0.5)) / np.float32(0.25), archive["labels"]


def test_a_run_leaves_every_promised_file(finished: Path) -> None:
    folder = finished / "runs" / "tiny"
    assert [name for name in PROMISED.split() if not (folder / name).stat().st_size] == []
    for name in PROMISED.split():
        if name.endswith((".json", ".jsonl")):
            lines = (folder / name).read_text().split("\n")
            header = json.loads(lines[0] if name.endswith("l") else "\n".join(lines))
            assert header["schema"].startswith("trt-layermerge/")
    assert not list(folder.glob(".*"))


def test_the_summary_says_what_can_be_found_out_without_it(finished: Path) -> None:
    folder = finished / "runs" / "tiny"
    summary = read(finished / "runs", "summary.json")
    inputs, labels = images(finished)

    weights = str(finished / "tiny.safetensors")
    model = load_network(f"{finished / 'nets.py'}:tiny", weights)
    with torch.no_grad():
        answers = model(torch.from_numpy(inputs)).numpy()
    original = summary["original"]
    assert original["accuracy"] == float(np.mean(answers.argmax(1) == labels))
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == ORIGINAL_CONVS
    assert (original["convs"], original["activations"]) == (ORIGINAL_CONVS, ORIGINAL_ACTIVATIONS)
    assert original["latency_ms"] == pytest.approx(model_ms(folder / "original.onnx"), rel=1e-12)

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    found = [session.run(None, {"input": x[None]})[0][0].argmax() for x in inputs]
    nodes = [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]
    merged = summary["merged"]
    assert merged["accuracy"] == float(np.mean(found == labels))
    assert (merged["convs"], merged["activations"]) == (nodes.count("Conv"), nodes.count("Relu"))
    assert merged["convs"] < ORIGINAL_CONVS
    assert merged["latency_ms"] == pytest.approx(model_ms(folder / "model.onnx"), rel=1e-12)

    assert summary["speedup"] == pytest.approx(original["latency_ms"] / merged["latency_ms"])
    assert summary["budget_ms"] == pytest.approx(original["latency_ms"] / 1.3)
    assert merged["latency_ms"] <= summary["budget_ms"]
    assert 0 < summary["certificate_max_rel_error"] < 1e-4
    assert 0 <= summary["repaired"]["accuracy"] <= 1 and summary["predicted_ms"] > 0
    assert [summary[k] for k in ("precision", "backend", "batch", "seed")] == ["fp32", "fake", 1, 0]
    assert summary["preprocess"] == {"scale": 1 / 255, "mean": [0.5] * 3, "std": [0.25] * 3}
    assert summary["input"] == {"name": "input", "shape": [1, 3, 16, 16]}


def test_a_second_run_does_and_changes_nothing(runs: Path, finished: Path) -> None:
    before = tiny.files(runs)
    for recipe in (None, finished / "tiny.yaml"):
        summary, told = tiny.run(runs, recipe)
        assert told.events == [(stage, "skip") for stage in STAGES]
        assert summary == read(runs, "summary.json")
    assert tiny.files(runs) == before


@pytest.mark.parametrize("goal", [{"search.speedup": 1.6}, {"search.budget_ms": 0.0185}])
def test_another_budget_is_searched_anew_and_nothing_is_measured(
    runs: Path, goal: dict[str, float]
) -> None:
    summary, told = tiny.run(runs, overrides=goal)
    assert told.stages("skip") == ("inspect", "latency", "importance")
    assert told.stages("run") == told.stages("done") == after("search")
    original_ms = model_ms(runs / "tiny" / "original.onnx")
    budget_ms = goal.get("search.budget_ms", original_ms / goal.get("search.speedup", 1))
    assert summary["budget_ms"] == pytest.approx(budget_ms)
    assert model_ms(runs / "tiny" / "model.onnx") <= budget_ms
    assert tiny.run(runs)[1].stages("skip") == STAGES  # the run remembers the budget


def test_an_impossible_budget_says_by_how_much_and_harms_nothing(runs: Path) -> None:
    before = tiny.files(runs)
    with pytest.raises(InfeasibleBudgetError, match=r"takes .* ms .* % too slow") as caught:
        tiny.run(runs, overrides={"search.speedup": 50.0})
    assert caught.value.exit_code == 6
    assert tiny.files(runs) == before


def test_an_impossible_budget_leaves_the_frontier_of_a_run_that_has_none(runs: Path) -> None:
    path = runs / "tiny" / "frontier.json"
    before = read(runs, "frontier.json")
    path.unlink()
    with pytest.raises(InfeasibleBudgetError):
        tiny.run(runs, overrides={"search.speedup": 50.0})
    left = read(runs, "frontier.json")
    assert left.keys() == before.keys() and len(left["points"]) > 1
    assert tiny.run(runs, overrides={"search.speedup": 1.3})[1].stages("run") == ("search",)


def test_stages_can_be_done_again_from_one_on_or_alone(runs: Path) -> None:
    _, told = tiny.run(runs, from_stage="export")
    assert told.stages("run") == after("export")
    assert told.stages("skip") == STAGES[: STAGES.index("export")]
    result, told = tiny.run(runs, only_stage="bench")
    assert told.events == [("bench", "run"), ("bench", "done")]
    assert result == read(runs, "bench.json")


def test_a_stage_without_those_before_it_says_so(tmp_path: Path, finished: Path) -> None:
    options = RunOptions("tiny", tmp_path, finished / "tiny.yaml", only_stage="search")
    expected = "the run 'tiny' has no .*latency.jsonl.*, which search needs; do the earlier stages"
    with pytest.raises(UsageError, match=expected):
        run_stage("search", options)
    with pytest.raises(UsageError, match=expected):
        tiny.run(tmp_path, finished / "tiny.yaml", only_stage="search")


DEPENDENT = {  # the stages that start when one file of a finished run is gone or tampered with
    "graph.json": ("inspect",),
    "candidates.jsonl": ("inspect",),
    "latency.jsonl": ("latency",),
    "plan.json": ("search",),
    "relaxed.safetensors": ("finetune",),
    "merged.safetensors": ("merge",),
    "model.onnx": ("export",),
    "calibration.json": ("calibrate",),
    "build.json": ("build",),
    "verify.json": ("verify",),
    "report.html": ("report",),
    "pictures/chain.svg": ("report",),
}


@pytest.mark.parametrize("tampered", [False, True], ids=["deleted", "tampered"])
def test_a_file_that_is_not_as_it_was_left_is_made_again(runs: Path, tampered: bool) -> None:
    for name, expected in DEPENDENT.items():
        path = runs / "tiny" / name
        content = path.read_bytes()
        path.unlink()
        if tampered:
            path.write_bytes(content.replace(b"1", b"2", 1))
        _, told = tiny.run(runs)
        assert told.stages("run") == expected, name
        assert name == "report.html" or path.read_bytes() == content


def test_a_tampered_importance_table_is_not_thrown_away_silently(runs: Path) -> None:
    path = runs / "tiny" / "importance.jsonl"
    content = path.read_bytes()
    path.write_bytes(content + b"garbage\n")
    with pytest.raises(CorruptInputError, match=r"importance\.jsonl is damaged: line \d+"):
        tiny.run(runs)
    path.unlink()
    assert tiny.run(runs)[1].stages("run") == ("importance",)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "damaged",
    [
        b"\xff\x00",
        b"{",
        b"[]",
        b'{"schema": "trt-layermerge/state@1", "stages": [1]}',
        b'{"schema": "trt-layermerge/state@1", "stages": {"inspect": {"inputs": 1}}}',
    ],
)
def test_a_damaged_record_of_what_is_done_is_begun_anew(runs: Path, damaged: bytes) -> None:
    (runs / "tiny" / "state.json").write_bytes(damaged)
    for expected in (["run", "done"], ["skip"]):
        told = tiny.Recorder()
        run_stage("inspect", RunOptions("tiny", runs), told)
        assert [state for _, state in told.events] == expected


def test_without_the_record_all_is_done_again_with_the_same_outcome(runs: Path) -> None:
    before = tiny.files(runs / "tiny")
    (runs / "tiny" / "state.json").write_text("nothing")
    summary, told = tiny.run(runs)
    assert told.stages("run") == STAGES
    now = tiny.files(runs / "tiny")
    for name in ("latency.jsonl", "importance.jsonl", "plan.json", "relaxed.safetensors"):
        assert now[name][1] == before[name][1]
    assert summary == json.loads(before["summary.json"][1])


def test_other_weights_are_another_run(runs: Path, finished: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    shutil.copy(finished / "tiny.safetensors", weights)
    chosen = {"model.weights": str(weights)}
    # The very same tensors: only the report, which shows the recipe, has something new to say.
    assert tiny.run(runs, overrides=chosen)[1].stages("run") == ("report",)
    tensors = load_file(weights)
    tensors["head.bias"] += 0.01
    save_file(tensors, weights)
    _, told = tiny.run(runs, overrides=chosen)
    assert told.stages("run")[:1] == ("inspect",)
    assert {"latency", "importance", "finetune", "merge", "export"} <= {*told.stages("run")}
    kept = [p.name for p in (runs / "tiny").glob("importance.*.jsonl")]
    assert len(kept) == 1  # the scores of the other weights are not lost


def test_training_can_be_left_out(runs: Path) -> None:
    summary, told = tiny.run(runs, overrides={"finetune.preset": "none"})
    assert told.stages("run") == after("search")  # plans that are not trained do not race
    folder = runs / "tiny"
    assert (folder / "relaxed.safetensors").read_bytes() == (
        folder / "repaired.safetensors"
    ).read_bytes()
    assert summary["merged"]["accuracy"] == summary["repaired"]["accuracy"]
    assert len((folder / "finetune.jsonl").read_text().splitlines()) == 1


def test_the_papers_start_is_the_original_weights(runs: Path) -> None:
    tiny.run(runs, overrides={"search.race_steps": 0})  # one plan, trained or not
    bare = {"finetune.start": "original", "finetune.preset": "none"}
    untrained, told = tiny.run(runs, overrides=bare)
    assert told.stages("run") == after("finetune")
    assert told.notes == ["neither repaired nor trained: expect a poor network"]
    trained, _ = tiny.run(runs, overrides={**bare, "finetune.preset": "short"})
    assert trained["merged"]["accuracy"] > untrained["merged"]["accuracy"] + 0.2
    assert json.loads((runs / "tiny" / "finetune.jsonl").read_text().split("\n")[0])["start"] == (
        "original"
    )


def test_importance_by_short_trainings(runs: Path) -> None:
    asked = {
        "importance.method": "finetune",
        "importance.finetune": {"epochs": 1, "batch": 32, "augment": [], "lr": 0.01},
        "search.limits.max_units": 2,
    }
    summary, told = tiny.run(runs, overrides=asked)
    assert "importance" in told.stages("run")
    lines = (runs / "tiny" / "importance.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[1:]]
    assert {row["method"] for row in rows} == {"finetune"}
    scores = {(r["start"], r["end"], r["kind"], str(r["convs"])): r["score"] for r in rows}
    plan = read(runs, "plan.json")
    # The published objective: exp of the loss of every block, those of untouched units included.
    terms = [scores[c["start"], c["end"], c["kind"], str(c["convs"])] for c in plan["candidates"]]
    assert plan["score"] == pytest.approx(sum(terms), rel=1e-12)
    assert sum(row["kind"] == "compose" and row["end"] == row["start"] + 1 for row in rows) == 7
    assert summary["merged"]["latency_ms"] <= summary["budget_ms"]


def test_without_test_images_no_accuracy_is_claimed(runs: Path) -> None:
    summary, told = tiny.run(runs, overrides={"data.test": None})
    assert told.stages("run") == ("verify", "report")
    assert [summary[k]["accuracy"] for k in ("original", "repaired", "merged")] == [None] * 3
    sentence = "accuracy was not measured: there are no labels"
    told_too = "nothing was compared on unseen images: training images served (data.test is none)"
    assert read(runs, "verify.json")["unverified"] == [sentence, told_too]
    for page in ("report.md", "report.html"):
        assert sentence in (runs / "tiny" / page).read_text().lower()


def test_what_was_guessed_is_told_and_stands_in_the_results(finished: Path, tmp_path: Path) -> None:
    """Random weights, and the normalisation of a factory's network that says nothing of it."""
    body = yaml.safe_load((finished / "tiny.yaml").read_text())
    del body["model"]["weights"], body["data"]["preprocess"]
    body |= {"finetune": {"preset": "none"}}
    for name in ("nets.py", "train.npz", "val.npz", "test.npz"):
        shutil.copy(finished / name, tmp_path)
    (tmp_path / "guessed.yaml").write_text(yaml.safe_dump(body))
    summary, told = tiny.run(tmp_path / "runs", tmp_path / "guessed.yaml")
    random, normal = summary["notes"]
    assert "random weights" in random and "ImageNet's mean [0.485, 0.456, 0.406]" in normal
    assert told.notes[:2] == [random, normal]
    assert summary["preprocess"]["std"] == [0.229, 0.224, 0.225]
    page = (tmp_path / "runs" / "tiny" / "report.md").read_text()
    assert "random weights" in page and "are assumed" in page


def test_validation_images_are_optional(runs: Path) -> None:
    summary, told = tiny.run(runs, overrides={"data.val": None})
    assert "finetune" in told.stages("run")
    assert summary["merged"]["accuracy"] > 0.5


@pytest.mark.parametrize(
    ("asked", "speedup"),
    [
        ({"search.rules": "paper"}, 1.2),
        ({"search.mode": "depth"}, 1.02),
        ({"search.mode": "layer"}, 1.3),
    ],
)
def test_published_rules_and_modes_meet_what_they_can(
    runs: Path, asked: dict[str, str], speedup: float
) -> None:
    # Enough networks for a table that tells which of the few candidates are worth their place.
    wanted = {"search.speedup": speedup, "search.headroom": 0.0, "measure.networks": 12}
    summary, _ = tiny.run(runs, overrides={**asked, **wanted})
    assert summary["merged"]["latency_ms"] <= summary["budget_ms"]
    kinds = {
        (c["kind"], len(c["kept"]) == c["end"] - c["start"])
        for c in read(runs, "plan.json")["candidates"]
        if not c["original"]
    }
    allowed = {
        "paper": {("compose", True), ("compose", False), ("identity", False)},
        "depth": {("compose", True)},
        "layer": {("identity", False)},
    }
    assert kinds and kinds <= allowed[next(iter(asked.values()))]


@pytest.mark.parametrize("asked", [{"search.rules": "paper"}, {"search.mode": "depth"}])
def test_published_rules_and_modes_refuse_what_they_cannot(
    runs: Path, asked: dict[str, str]
) -> None:
    with pytest.raises(InfeasibleBudgetError, match="no network meets"):
        tiny.run(runs, overrides={**asked, "search.speedup": 1.6})


def test_files_have_the_keys_and_types_that_they_always_had(runs: Path) -> None:
    """``golden.json`` was made by the version before stages became calls of a session.

    Since then ``feature_weight`` went; ``kept_in_float``, ``notes``, ``plans``, ``streams``, what
    stages were done with and by which code, why a plan was taken, and agreement with the original
    came.
    """
    wanted = {"build.engine": "auto", "build.precisions": ["fp32", "int8"]}
    tiny.run(runs, overrides={**wanted, "package.targets": ["plain"]})
    golden = json.loads((Path(__file__).parent / "golden.json").read_text())
    found = forms_of(runs / "tiny")
    assert found.keys() == golden.keys()
    assert {n: sorted({*golden[n]} ^ {*found[n]}) for n in golden if golden[n] != found[n]} == {}
