"""``calibrate``: what a run has at int8, what it does again, what it refuses."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from tests.pipeline import tiny
from trt_layermerge.backends import get_backend
from trt_layermerge.core.jsonio import sha256_file
from trt_layermerge.deploy.bundle.folder import read_bundle
from trt_layermerge.errors import AccuracyGateError, CorruptInputError, UsageError
from trt_layermerge.pipeline.api import open_run, run_stage
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.pipeline.run import Run
from trt_layermerge.session import quantizing
from trt_layermerge.session.deployed import deployed_model, weights_name
from trt_layermerge.session.networks import onnx_of

FILES = ("original.int8.onnx", "model.int8.onnx", "calibration.json")
INT8 = {"build.precisions+": "int8"}
FEW = {**INT8, "calibrate.options": {"images": 32}}


def opened(runs: Path, **overrides: Any) -> Run:
    options = RunOptions("tiny", runs, overrides=overrides)
    return open_run(None, options, NullReporter())


def calibrate(runs: Path, told: tiny.Recorder | None = None, **overrides: Any) -> dict[str, Any]:
    """Calibrates the copied run on 32 images, with further values of the recipe's section."""
    dotted = {f"calibrate.{key}": value for key, value in overrides.items()}
    return run_stage("calibrate", RunOptions("tiny", runs, overrides={**FEW, **dotted}), told)


def written(runs: Path) -> dict[str, Any]:
    return json.loads((runs / "tiny" / "calibration.json").read_text())


def images(finished: Path, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns images as the recipe preprocesses them, and labels."""
    archive = np.load(finished / f"{split}.npz")
    pixels = archive["images"].transpose(0, 3, 1, 2).astype(np.float32) / 255
    return (pixels - np.float32(0.5)) / np.float32(0.25), archive["labels"]


def answers(model: bytes, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    with get_backend("onnxruntime").open(model) as runner:
        return np.concatenate([runner.infer({"input": x[None]})["logits"] for x in pixels])


def test_without_int8_there_is_a_reason_and_nothing_else(finished: Path) -> None:
    body = written(finished / "runs")
    assert body["networks"] == {} and "measure.precision" in body["reason"]
    assert not list((finished / "runs" / "tiny").glob("*int8*"))


def test_both_networks_run_in_onnx_runtime_and_are_as_right_as_it_says(
    runs: Path, finished: Path
) -> None:
    told = tiny.Recorder()
    result = calibrate(runs, told)
    assert result["calibrated_on"] == {"source": "train", "images": 32}
    assert result["judged_on"] == {"source": "val", "images": tiny.IMAGES["val"]}
    pixels, labels = images(finished, "val")
    for row, master in zip(result["networks"], ("original", "model"), strict=True):
        exact = answers((runs / "tiny" / f"{master}.onnx").read_bytes(), pixels)
        rounded = answers((runs / "tiny" / row["file"]).read_bytes(), pixels)
        assert row["accuracy_fp32"] == np.mean(exact.argmax(1) == labels)
        # Integer kernels may decide otherwise than the written rounding: one image at most.
        assert row["accuracy_int8"] == pytest.approx(
            np.mean(rounded.argmax(1) == labels), abs=1 / len(labels)
        )
        assert row["accuracy_fp32"] - row["accuracy_int8"] <= 0.01 + 1e-9
        assert 0 < np.abs(rounded - exact).max() < 0.2 * np.abs(exact).max()
        assert row["keep_float"] == [] and all(layer["sqnr_db"] > 10 for layer in row["layers"])
    assert [note for note in told.notes if "left in float: no layer" in note] == told.notes
    assert len(told.notes) == 2

    before = tiny.files(runs)
    again = tiny.Recorder()
    calibrate(runs, again)
    assert again.events == [("calibrate", "skip")]
    assert tiny.files(runs) == before


def test_the_run_builds_int8_from_then_on(runs: Path) -> None:
    calibrate(runs)
    assert opened(runs).recipe.build.precisions == ("fp32", "fp16", "int8")
    _, told = tiny.run(runs)
    assert "calibrate" in told.stages("skip")


def test_without_engines_what_was_calibrated_is_used_all_the_same(runs: Path) -> None:
    """``build.engine`` is none here: as ONNX it is compared with torch, timed and bundled."""
    calibrate(runs)
    tiny.run(runs, overrides={"package.targets": ["plain"]})
    bodies = {n: json.loads((runs / "tiny" / f"{n}.json").read_text()) for n in ("verify", "bench")}
    compared = {row["name"]: row["reason"] for row in bodies["verify"]["comparisons"]}
    assert compared["model.int8.onnx"] is compared["original.int8.onnx"] is None
    assert "int8" in [pair["precision"] for pair in bodies["bench"]["precisions"]]
    assert "int8" in read_bundle(runs / "tiny" / "deploy" / "plain")[1].models


def test_layers_left_in_float_are_named(runs: Path) -> None:
    def pairs() -> list[int]:
        graphs = (onnx.load(runs / "tiny" / file).graph for file in FILES[:2])
        return [[n.op_type for n in g.node].count("QuantizeLinear") for g in graphs]

    told = tiny.Recorder()
    layers = [row["layers"] for row in calibrate(runs)["networks"]]
    before = pairs()
    stem, head = layers[0][0]["name"], layers[1][-1]["name"]
    assert stem not in [layer["name"] for layer in layers[1]]  # it is part of a merged block
    result = calibrate(runs, told, options={"images": 32, "keep_float": [head, stem]})
    assert [row["keep_float"] for row in result["networks"]] == [[stem, head], [head]]
    assert [note.partition("left in float: ")[2] for note in told.notes] == [
        f"{stem}, {head}",
        head,
    ]
    # A pair for the weight and one for the activation of each.
    assert [a - b for a, b in zip(before, pairs(), strict=True)] == [4, 2]
    with pytest.raises(UsageError, match=r"keep_float names .'/none'"):
        calibrate(runs, options={"keep_float": ["/none"]})
    assert "/none" not in (runs / "tiny" / "recipe.yaml").read_text()  # it does not stick


CLIPPED = {"images": 32, "method": "percentile", "percentile": 50, "max_float_layers": 0}


def test_a_calibration_that_loses_too_much_fails_its_gate(runs: Path) -> None:
    calibrate(runs)
    before = {name: (runs / "tiny" / name).read_bytes() for name in FILES}
    with pytest.raises(
        AccuracyGateError, match=r"points of accuracy on 64 images.*method"
    ) as caught:
        calibrate(runs, options=CLIPPED)
    assert caught.value.exit_code == 5
    assert before == {name: (runs / "tiny" / name).read_bytes() for name in FILES}


def test_killed_between_two_files_it_ends_as_if_it_never_was(
    runs: Path, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kept in (1, 2):
        left = kept

        def write(path: Path, data: bytes) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            path.write_bytes(data)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(quantizing, "write_bytes", write)
            patch.setattr(quantizing, "write_json", lambda *_: pytest.fail("written too early"))
            if kept == 2:
                patch.setattr(quantizing, "write_json", lambda *_: write(Path(), b""))
            calibrate(runs)
        assert (runs / "tiny" / FILES[kept - 1]).is_file()
        with pytest.raises(UsageError, match=r"not calibrated for int8.*calibrate --run tiny"):
            deployed_model(runs / "tiny", "original", "int8", "fp32")
    calibrate(runs)
    ended = {name: (runs / "tiny" / name).read_bytes() for name in FILES}
    for name in FILES:
        (runs / "tiny" / name).unlink()
        told = tiny.Recorder()
        calibrate(runs, told)
        assert told.stages("run") == ("calibrate",)
        assert ended == {name: (runs / "tiny" / name).read_bytes() for name in FILES}


def test_judged_on_training_images_that_were_not_calibrated_on(runs: Path) -> None:
    run = opened(runs, **{**FEW, "data.val": None})
    preset = quantizing.preset_of(run.recipe.calibrate)
    found = quantizing._images(run.train, None, preset, run.session.outputs)
    assert (found.judged_on, len(found.labels), len(found.fit)) == ("train", 80, 32)
    seen = {image.tobytes() for batch in found.batches for image in batch}
    assert seen.isdisjoint(image.tobytes() for image in found.pixels)


def test_what_is_deployed_has_the_type_and_the_batch_that_are_asked_for(runs: Path) -> None:
    asked = {**FEW, "build.max_batch": 4}
    tiny.run(runs, overrides=asked)
    folder = runs / "tiny"
    kinds = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16}
    for precision, fallback in (("fp32", "fp32"), ("fp16", "fp32"), ("int8", "fp16")):
        inner = kinds["fp16" if "fp16" in (precision, fallback) else "fp32"]
        for keep_io, batch in ((True, None), (False, 2)):
            model = onnx.load_from_string(
                deployed_model(folder, "merged", precision, fallback, keep_io=keep_io, batch=batch)
            )
            [value] = model.graph.input
            first = value.type.tensor_type.shape.dim[0]
            assert (first.dim_param or first.dim_value) == (batch or "batch")
            assert value.type.tensor_type.elem_type == (kinds["fp32"] if keep_io else inner)
            floats = {t.data_type for t in model.graph.initializer} & set(kinds.values())
            assert floats == {inner}
            rounds = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
            assert rounds == (precision == "int8")
    assert weights_name(folder, "int8") == weights_name(folder, "fp16") == "merged.safetensors"


def test_tensorrt_rtx_builds_what_was_calibrated(runs: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    calibrate(runs)
    asked = {"build.engine": "tensorrt_rtx", "build.precisions": ["int8"]}
    engines = run_stage("build", RunOptions("tiny", runs, overrides=asked))["engines"]
    assert [(e["network"], e["error"]) for e in engines] == [("original", None), ("merged", None)]
    for engine, name in zip(engines, FILES[:2], strict=True):
        sidecar = json.loads((runs / "tiny" / engine["plan"]).with_suffix(".json").read_text())
        assert sidecar["precision"] == "int8"
        assert sidecar["origin"]["onnx_sha256"] == sha256_file(runs / "tiny" / name)


def test_engines_at_int8_need_a_calibration(runs: Path) -> None:
    asked = {"build.engine": "tensorrt_rtx", "build.precisions": ["int8"]}
    with pytest.raises(UsageError, match=r"calibrate of the run 'tiny' was done with other"):
        run_stage("build", RunOptions("tiny", runs, overrides=asked))


def test_an_int8_model_that_is_not_the_calibrated_one_is_refused(runs: Path) -> None:
    calibrate(runs)
    path = runs / "tiny" / "model.int8.onnx"
    path.write_bytes((runs / "tiny" / "original.int8.onnx").read_bytes())
    with pytest.raises(CorruptInputError, match="not as calibrate left it"):
        deployed_model(runs / "tiny", "merged", "int8", "fp32")


@pytest.mark.parametrize("fallback", ["fp32", "fp16"])
def test_networks_are_timed_at_int8_without_images(runs: Path, fallback: str) -> None:
    session = opened(runs).session
    model = onnx_of(session.model, session.example, "int8", fallback)
    kinds = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16}
    graph = onnx.load_from_string(model).graph
    assert graph.input[0].type.tensor_type.elem_type == kinds[fallback]
    assert "QuantizeLinear" in {node.op_type for node in graph.node}
    with get_backend("onnxruntime").open(model) as runner:
        assert len(runner.time_burst(1)) == 1


def test_a_whole_run_measures_chooses_and_reports_int8(runs: Path) -> None:
    summary, told = tiny.run(runs, overrides={**FEW, "measure.precision": "int8"})
    assert summary["precision"] == "int8" and summary["speedup"] > 1.2
    assert summary["merged"]["latency_ms"] <= summary["budget_ms"]
    assert {"latency", "search", "calibrate", "bench", "report"} <= {*told.stages("run")}
    rows = (runs / "tiny" / "latency.jsonl").read_text().splitlines()[1:]
    assert {json.loads(row)["precision"] for row in rows} == {"int8"}
    with get_backend("fake").open((runs / "tiny" / "model.int8.onnx").read_bytes()) as runner:
        assert summary["merged"]["latency_ms"] == pytest.approx(runner.time_burst(1)[0])
    assert set(tiny.run(runs)[1].stages("skip")) >= {"latency", "search", "calibrate"}


def test_training_with_rounding_keeps_what_is_better_and_repeats_itself(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs / "tiny"
    merged = (folder / "merged.safetensors").read_bytes()
    plain = calibrate(runs)
    told = tiny.Recorder(interrupt_while="training with int8's rounding")
    with pytest.raises(KeyboardInterrupt):
        calibrate(runs, told, qat_epochs=2)
    told = tiny.Recorder()
    qat = calibrate(runs, told, qat_epochs=2)["qat"]
    assert [n for label, n in told.steps if label.startswith("training")] == [2]
    assert (folder / "merged.safetensors").read_bytes() == merged
    assert qat["epochs"] == 2
    assert qat["accuracy_before"] == plain["networks"][1]["accuracy_int8"]
    assert qat["kept"] == (qat["accuracy_after"] >= qat["accuracy_before"])
    kept = "qat.safetensors" if qat["kept"] else "merged.safetensors"
    assert weights_name(runs / "tiny", "int8") == kept
    trained, untrained = (load_file(folder / f"{n}.safetensors") for n in ("qat", "merged"))
    assert trained.keys() == untrained.keys()
    assert not any(trained[n].equal(untrained[n]) for n in trained if n.endswith("weight"))

    names = (*FILES, "qat.safetensors")
    first = {name: (folder / name).read_bytes() for name in names}
    for path in (*map(folder.joinpath, names), folder / "qat.state.safetensors"):
        path.unlink()
    calibrate(runs, qat_epochs=2)
    assert first == {name: (folder / name).read_bytes() for name in names}


def test_training_that_loses_is_told_and_not_kept(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(merged: nn.Module, *_: Any, **__: Any) -> nn.Module:
        network = deepcopy(merged)
        with torch.no_grad():
            for weight in network.parameters():
                weight.mul_(-1)
        return network

    monkeypatch.setattr(quantizing, "train_rounded", spoil)
    qat = calibrate(runs, qat_epochs=1)["qat"]
    assert qat["accuracy_after"] < qat["accuracy_before"] and not qat["kept"]
    assert weights_name(runs / "tiny", "int8") == "merged.safetensors"
