"""Single stages of the tiny project, each beside what it was made from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.pipeline import tiny
from trt_layermerge.deploy.machine import Machine
from trt_layermerge.errors import (
    AccuracyGateError,
    CorruptInputError,
    DeviceError,
    InfeasibleBudgetError,
    UnsupportedModelError,
    UntrustedInputError,
    UsageError,
)
from trt_layermerge.export.fp16 import to_precision
from trt_layermerge.merge import Certificate
from trt_layermerge.pipeline.api import open_run, run_stage
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.sections import DataSection
from trt_layermerge.pipeline.stages import search
from trt_layermerge.pipeline.stages.verify import seen_before
from trt_layermerge.session import building
from trt_layermerge.session.scoring import to_score


def opened(runs: Path, **overrides: object) -> Run:
    """Returns the tiny run with values of its recipe replaced."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return open_run(None, RunOptions("tiny", runs, overrides=dotted), NullReporter())


@pytest.mark.parametrize(("method", "units"), [("calibrate", 0), ("finetune", 7)])
def test_untouched_units_are_scored_where_all_are_trained_anew(
    runs: Path, method: str, units: int
) -> None:
    run = opened(runs, importance__method=method)
    session = run.session
    chosen = to_score(run.graph, session.candidates, run.latency, run.recipe)
    assert sum(c.original for c in chosen) == units
    assert any(not c.original for c in chosen)


def test_an_inspection_tells_how_long_the_rest_will_take(runs: Path) -> None:
    told = run_stage("inspect", RunOptions("tiny", runs))["estimate"]
    assert set(told["seconds"]) == {"latency", "importance", "search", "finetune"}
    assert told["seconds"].pop("finetune") is None  # nobody has counted the images yet
    assert all(0 < seconds < 3600 for seconds in told["seconds"].values())
    assert told["threads"] == torch.get_num_threads()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_torch_measures_on_the_device_that_was_asked_for(runs: Path) -> None:
    asked = opened(runs, measure__backend="torch", device="cuda")
    with pytest.raises(DeviceError, match="no CUDA device"):
        _ = asked.session.backend
    assert opened(runs, measure__backend="torch", device="cpu").session.backend.name == "torch"


def test_images_of_another_shape_than_is_measured_are_refused(runs: Path, tmp_path: Path) -> None:
    images = np.zeros((8, 16, 24, 3), np.uint8)
    np.savez(tmp_path / "wide.npz", images=images, labels=np.arange(8) % 4)
    asked = opened(runs, data__val=f"npz:{tmp_path / 'wide.npz'}")
    with pytest.raises(CorruptInputError, match=r"\(3, 16, 24\).*\(3, 16, 16\)"):
        asked.data("val")
    assert asked.data("test") is not None


def test_no_stage_works_on_what_was_made_for_another_plan(runs: Path) -> None:
    run_stage("report", RunOptions("tiny", runs))
    faster = RunOptions("tiny", runs, overrides={"search.speedup": 1.6})
    run_stage("search", faster)
    for stage in ("merge", "export", "bench", "report"):
        with pytest.raises(
            UsageError, match=f"run 'tiny' was done before .* and {stage} would mix"
        ):
            run_stage(stage, RunOptions("tiny", runs))
    run_stage("finetune", RunOptions("tiny", runs))
    run_stage("merge", RunOptions("tiny", runs))
    with pytest.raises(UsageError, match="export of the run 'tiny' was done before"):
        run_stage("bench", RunOptions("tiny", runs))


def test_a_batch_that_was_not_exported_is_not_timed(runs: Path) -> None:
    options = RunOptions("tiny", runs, overrides={"measure.batch": 8})
    with pytest.raises(UsageError, match=r"inspect .* was done with other .*\(batch\)"):
        run_stage("bench", options)


def test_predictions_for_one_device_are_not_held_against_another(runs: Path) -> None:
    before = run_stage("report", RunOptions("tiny", runs))
    elsewhere = RunOptions("tiny", runs, overrides={"measure.backend": "onnxruntime"})
    run_stage("bench", elsewhere)
    after = run_stage("report", elsewhere)
    assert before["backend"] == "fake" and before["predicted_ms"] > 0
    assert after["backend"] == "onnxruntime" and after["predicted_ms"] is None


def test_a_report_keeps_the_budget_of_its_plan(runs: Path) -> None:
    before = run_stage("report", RunOptions("tiny", runs))
    missed = RunOptions("tiny", runs, overrides={"search.speedup": 100.0})
    with pytest.raises(InfeasibleBudgetError):
        run_stage("search", missed)
    assert run_stage("report", RunOptions("tiny", runs))["budget_ms"] == before["budget_ms"]


def test_engines_of_other_machines_are_left_alone(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = runs / "tiny" / "engines"
    for machine in ("here", "elsewhere"):
        (engines / machine).mkdir(parents=True)
        (engines / machine / "model.fp32.plan").write_bytes(b"engine")
    monkeypatch.setattr(building, "this_machine", lambda: Machine(gpu="Here"))
    run_stage("build", RunOptions("tiny", runs))
    assert (engines / "elsewhere" / "model.fp32.plan").read_bytes() == b"engine"


def test_a_merge_without_its_certificate_leaves_no_weights(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = runs / "tiny" / "merged.safetensors"
    merged.unlink()
    monkeypatch.setattr(Certificate, "ok", False)
    with pytest.raises(UnsupportedModelError, match="does not compute what the relaxed one does"):
        run_stage("merge", RunOptions("tiny", runs))
    assert not merged.exists()


def test_an_engine_without_its_sidecar_is_loaded_only_where_it_is_trusted(runs: Path) -> None:
    folder = runs / "tiny"
    (folder / "stranger.plan").write_bytes(b"no engine")
    built = {"precision": "fp32", "plan": "stranger.plan", "error": None}
    tiny.replace_output(folder / "build.json", "build", {"engines": [built]})
    with pytest.raises(UntrustedInputError, match="--trust-engine"):
        run_stage("verify", RunOptions("tiny", runs))
    unverified = run_stage("verify", RunOptions("tiny", runs, trust_engine=True))["unverified"]
    assert any("stranger.plan was not run" in reason for reason in unverified)
    with pytest.raises(UntrustedInputError, match="--trust-engine"):
        run_stage("verify", RunOptions("tiny", runs))


def test_half_precision_that_is_far_off_fails(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding to half costs less than 5 % of the largest output; a fault costs more."""

    def faulty(model: bytes, precision: str, **options: bool) -> bytes:
        made = onnx.load_from_string(to_precision(model, precision, **options))
        if precision == "fp16":
            for tensor in made.graph.initializer:
                values = np.float16(1.05) * numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return made.SerializeToString()

    wanted = {"build.engine": "auto", "build.precisions": ["fp32", "fp16"]}
    options = RunOptions("tiny", runs, overrides=wanted)
    for room in ("networks", "deployed"):
        monkeypatch.setattr(f"trt_layermerge.session.{room}.to_precision", faulty)
    run_stage("build", options)
    with pytest.raises(
        AccuracyGateError, match=r"original\.fp16\.onnx differs .* 5e-02 is allowed"
    ):
        run_stage("verify", options)
    body = json.loads((runs / "tiny" / "verify.json").read_text())
    figures = {c["name"]: c["max_rel"] for c in body["comparisons"]}
    assert 0.05 < figures["original.fp16.onnx"] < 1


def test_the_objective_follows_the_table_not_a_later_recipe(runs: Path) -> None:
    later = RunOptions("tiny", runs, overrides={"importance.method": "finetune"})
    with pytest.raises(UsageError, match=r"importance .* was done with other .*\(importance\)"):
        run_stage("search", later)
    search.STAGE.run(open_run(None, later, NullReporter()))
    plan = json.loads((runs / "tiny" / "plan.json").read_text())
    assert plan["score"] <= 0  # a sum of losses; the paper's objective adds about 1 a block


def test_test_images_that_were_trained_on_are_told(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "train.npz", tmp_path / "renamed.npz")
    named = {name: f"npz:{finished / name}.npz" for name in ("train", "val", "test")}
    assert seen_before(DataSection(**named)) == []
    (told,) = seen_before(DataSection(**{**named, "test": f"npz:{tmp_path / 'renamed.npz'}"}))
    assert told.endswith("test and train are the same files")
    (told,) = seen_before(DataSection(**{**named, "test": None}))
    assert "training images served" in told
    assert seen_before(DataSection()) == []
    one_file = {name: f"{finished / 'nets.py'}:{name}" for name in named}
    assert seen_before(DataSection(**one_file)) == []


def test_a_failed_gate_ends_the_run_after_its_report(runs: Path) -> None:
    asked = {"finetune.start": "original", "finetune.preset": "none"}
    report = runs / "tiny" / "report.html"
    report.unlink()
    for _ in range(2):  # the second time nothing is left to do, and the gate still fails
        with pytest.raises(AccuracyGateError, match="accuracy dropped"):
            tiny.run(runs, overrides={**asked, "verify.max_accuracy_drop": 0.0})
        assert report.is_file()


def test_a_table_that_is_only_begun_is_not_searched(runs: Path) -> None:
    folder = runs / "tiny"
    state = json.loads((folder / "state.json").read_text())
    del state["stages"]["importance"]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(UsageError, match=r"no importance\.jsonl yet, which search needs"):
        run_stage("search", RunOptions("tiny", runs))
