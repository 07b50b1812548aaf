"""A finished run → bundles: what is in them, when they are made again, and what is not bundled."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipeline import tiny
from trt_layermerge.core.jsonio import sha256_file
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.deploy.bundle.contents import TARGETS, Baked
from trt_layermerge.deploy.bundle.folder import read_bundle
from trt_layermerge.deploy.bundle.rebuild import rebuild
from trt_layermerge.deploy.sidecar import sidecar_path
from trt_layermerge.errors import (
    CorruptInputError,
    LatencyGateError,
    UnsupportedModelError,
    UntrustedInputError,
    UsageError,
)
from trt_layermerge.pipeline import packaging
from trt_layermerge.pipeline.api import open_run, run_stage
from trt_layermerge.pipeline.options import RunOptions
from trt_layermerge.pipeline.packaging import sample_inputs, server_name
from trt_layermerge.pipeline.recipe import load_recipe
from trt_layermerge.pipeline.stages.package import baked_for

RTX = "tensorrt_rtx"


def package(runs: Path, **keys: Any) -> tuple[dict[str, Any], tiny.Recorder]:
    """Packages the run ``tiny`` with sections' values by key, dots written as two underlines."""
    reporter = tiny.Recorder()
    overrides = {key.replace("__", "."): value for key, value in keys.items()}
    return run_stage("package", RunOptions("tiny", runs, overrides=overrides), reporter), reporter


def check(bundle: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(bundle / "verify.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_all_targets_of_one_run(runs: Path) -> None:
    result, reporter = package(runs, package__targets=list(TARGETS))
    deploy = runs / "tiny" / "deploy"
    assert [b["target"] for b in result["bundles"]] == list(TARGETS)
    assert {p.name for p in deploy.iterdir()} == set(TARGETS)
    assert reporter.stages("run") == ("package",)
    for target in TARGETS:
        done = check(deploy / target)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"tiny (fp32, for {target}): ")
        found, contents = read_bundle(deploy / target)
        assert (found, contents.name, contents.seed) == (target, "tiny", 0)
        assert contents.engine is None
        assert contents.why_no_engine == "the recipe asks for none (build.engine)"
        assert contents.accuracy.keys() == {"original", "fp32"}
        assert contents.latency.keys() == {"fp32"}
        assert load_recipe(runs / "tiny" / "recipe.yaml", {}).package.targets == TARGETS
        assert contents.baked == Baked(target == "deepstream", target == "deepstream")
    plain = read_bundle(deploy / "plain")[1]
    assert plain.models["fp32"] == (runs / "tiny" / "model.onnx").read_bytes()
    assert plain.weights_sha256 == sha256_file(runs / "tiny" / "merged.safetensors")
    assert any("RGB from 0 to 255" in note for note in reporter.notes)


def test_runs_whose_names_servers_do_not_take_stay_apart() -> None:
    runs = ["ñandú", "ñandu", "nandú", "网络", "網絡", "my net", "my_net", "...", "-net", "net"]
    names = [server_name(run) for run in runs]
    assert len(set(names)) == len(runs)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) for name in names)
    assert (server_name("net-1.5x"), server_name("my_net")) == ("net-1.5x", "my_net")
    assert server_name("ñandú") == server_name("ñandú")


def test_a_precision_that_is_impossible_is_left_out_of_the_bundle(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = packaging.deployed_model

    def deployed_model(folder: Path, network: Any, precision: Any, fallback: Any) -> bytes:
        if precision == "fp16":
            raise UnsupportedModelError("a constant is too large")
        return real(folder, network, precision, fallback)

    monkeypatch.setattr(packaging, "deployed_model", deployed_model)
    monkeypatch.setattr(packaging, "wanted_precisions", lambda _: ("fp32", "fp16"))
    _, reporter = package(runs, package__targets=["plain"])
    assert read_bundle(runs / "tiny" / "deploy" / "plain")[1].models.keys() == {"fp32"}
    assert "the bundle has no fp16 network: a constant is too large" in reporter.notes
    with pytest.raises(UnsupportedModelError, match="too large"):
        package(runs, package__targets=["plain"], package__precision="fp16")


def test_a_bundle_is_made_again_only_if_it_must_be(runs: Path) -> None:
    package(runs, package__targets=["plain"])
    before = tiny.files(runs / "tiny" / "deploy")
    assert package(runs)[1].stages("skip") == ("package",)
    assert tiny.files(runs / "tiny" / "deploy") == before
    (runs / "tiny" / "deploy" / "plain" / "recipe.yaml").write_text("changed")
    assert package(runs)[1].stages("done") == ("package",)
    now = tiny.files(runs / "tiny" / "deploy")
    assert {name: data for name, (_, data) in now.items()} == {
        name: data for name, (_, data) in before.items()
    }
    assert package(runs, package__precision="fp16")[1].stages("done") == ("package",)
    assert (runs / "tiny" / "deploy" / "plain" / "model.fp16.onnx").is_file()


def test_sample_inputs_of_a_baked_graph_are_the_pixels_of_the_images(
    finished: Path, runs: Path
) -> None:
    package(runs, package__targets=["plain"], package__bake_preprocess=True)
    _, contents = read_bundle(runs / "tiny" / "deploy" / "plain")
    images = np.load(finished / "val.npz")["images"][[0, 32]]
    np.testing.assert_array_equal(contents.samples.inputs[0], images.transpose(0, 3, 1, 2))
    (baked,) = contents.samples.outputs["fp32"]
    assert contents.samples.source == "images 0 and 32 of val"
    package(runs, package__bake_preprocess=False)
    _, contents = read_bundle(runs / "tiny" / "deploy" / "plain")
    np.testing.assert_array_equal(contents.samples.inputs[0], tiny.PREPROCESS(images))
    logits = contents.samples.outputs["fp32"][0].astype(np.float64)
    powers = np.exp(logits)
    np.testing.assert_allclose(baked, powers / powers.sum(1, keepdims=True), atol=1e-5)


def test_without_images_the_inputs_are_seeded(runs: Path) -> None:
    run = open_run(
        None,
        RunOptions("tiny", runs, overrides={"data.val": None, "data.train": None}),
        tiny.Recorder(),
    )
    (raw,), source = sample_inputs(run, normalised=False)
    (again,), _ = sample_inputs(run, normalised=False)
    (normal,), _ = sample_inputs(run, normalised=True)
    assert source == "random pixels, seed 0"
    assert raw.shape == (2, 3, 16, 16) and raw.min() >= 0 and raw.max() <= 255
    np.testing.assert_array_equal(raw, again)
    pixels = raw.transpose(0, 2, 3, 1).astype(np.uint8)
    np.testing.assert_array_equal(normal, run.recipe.data.preprocess.build()(pixels))
    assert isinstance(run.recipe.data.preprocess.build(), Preprocess)


@pytest.mark.parametrize(
    ("target", "wanted", "baked"),
    [
        ("plain", None, Baked()),
        ("plain", True, Baked(True, True)),
        ("triton", False, Baked()),
        ("deepstream", None, Baked(True, True)),
        ("deepstream", True, Baked(True, True)),
        ("deepstream", False, Baked(False, True)),
    ],
)
def test_what_is_baked(target: Any, wanted: bool | None, baked: Baked) -> None:
    assert baked_for(target, wanted, classifies=True) == baked
    without = Baked(baked.normalise, False)  # only logits of classes become probabilities
    assert baked_for(target, wanted, classifies=False) == without


def test_nothing_is_bundled_for_nobody(runs: Path) -> None:
    with pytest.raises(UsageError, match="--for plain, triton, deepstream or isaac-ros"):
        package(runs)


def test_what_fails_a_gate_is_not_bundled(runs: Path) -> None:
    with pytest.raises(LatencyGateError, match=r"1e-09 ms are allowed"):
        package(runs, package__targets=["plain"], verify__max_latency_ms=1e-9)
    assert not (runs / "tiny" / "deploy").exists()
    with pytest.raises(LatencyGateError):
        tiny.run(  # and neither by a whole run
            runs, overrides={"package.targets": ["plain"], "verify.max_latency_ms": 1e-9}
        )
    assert not (runs / "tiny" / "deploy").exists()


def test_a_run_ends_with_the_bundles_that_its_recipe_names(runs: Path) -> None:
    result, reporter = tiny.run(runs, overrides={"package.targets": ["isaac-ros"]})
    assert reporter.stages("done")[-1] == "package"
    assert result["speedup"] > 1
    assert (runs / "tiny" / "deploy" / "isaac-ros" / "params.yaml").is_file()
    assert tiny.run(runs)[1].stages("skip")[-1] == "package"
    assert tiny.run(runs, from_stage="package")[1].stages("done") == ("package",)
    assert tiny.run(runs, only_stage="package")[1].stages("done") == ("package",)


def test_a_dynamic_batch_arrives_in_the_servers_files(runs: Path) -> None:
    tiny.run(runs, overrides={"build.max_batch": 4, "package.targets": ["triton", "deepstream"]})
    deploy = runs / "tiny" / "deploy"
    config = (deploy / "triton" / "models" / "tiny_onnx" / "config.pbtxt").read_text()
    assert "max_batch_size: 4\n" in config and "dims: [ 3, 16, 16 ]" in config
    assert "batch-size=4\n" in (deploy / "deepstream" / "config_infer.txt").read_text()
    assert check(deploy / "triton").returncode == 0


class TestEngines:
    """With engines that TensorRT-RTX builds on a machine without a GPU."""

    @pytest.fixture
    def built(self, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        pytest.importorskip(RTX, reason="TensorRT-RTX is not installed")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        overrides = {
            "build.engine": RTX,
            "build.precisions": ["fp16", "int8"],
            "package.precision": "fp16",
            "package.targets": ["plain", "deepstream"],
        }
        tiny.run(runs, overrides=overrides)
        return runs

    def test_engines_are_bundled_checked_and_made_again(
        self, built: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deploy, engines = built / "tiny" / "deploy", built / "tiny" / "engines"
        (plan,) = engines.rglob("model.fp16.plan")
        assert (deploy / "plain" / "model.fp16.plan").read_bytes() == plan.read_bytes()
        _, plain = read_bundle(deploy / "plain")
        _, baked = read_bundle(deploy / "deepstream")
        assert plain.models.keys() == {"fp32", "fp16", "int8"} and plain.portable is not None
        assert json.loads(plain.calibration or "")["networks"].keys() == {"original", "merged"}
        assert plain.engine is not None and baked.engine is not None
        body = json.loads((built / "tiny" / "verify.json").read_text())
        measured = {row["name"]: row["accuracy"] for row in body["comparisons"]}
        assert plain.accuracy == {
            "original": body["accuracy"]["original"],
            "fp32": measured["model.onnx"],
            "fp16": measured["model.fp16.onnx"],
            "int8": measured["model.int8-fp16.onnx"],
        }
        told = plain.engine.sidecar.accuracy  # as verify left it
        assert told is not None and told["onnx"] == plain.accuracy["fp16"]
        assert "engine" not in told  # it was not run
        assert baked.engine.plan != plain.engine.plan  # of another graph
        assert list(baked.engine.sidecar.outputs) == ["prob"]
        for target in ("plain", "deepstream"):
            done = check(deploy / target)
            assert done.returncode == 0, done.stderr
            assert "The engine was not run" in done.stdout
            assert check(deploy / target, "--require-engine").returncode == 4
        assert rebuild(deploy / "plain", RTX, "int8")["precision"] == "int8"
        assert check(deploy / "plain").returncode == 0

        model = built / "tiny" / "model.onnx"
        good = model.read_bytes()
        monkeypatch.setattr(
            "trt_layermerge.pipeline.packaging.deployed_model", lambda *_: good + b"\x22\x00"
        )  # what another version would type otherwise
        with pytest.raises(CorruptInputError, match="another network than the run has now"):
            package(built, package__targets=["plain"])
        monkeypatch.undo()

        own = plan.read_bytes(), sidecar_path(plan).read_bytes()
        other = plan.with_name("original.fp16.plan")
        plan.write_bytes(other.read_bytes())
        sidecar_path(plan).write_bytes(sidecar_path(other).read_bytes())
        with pytest.raises(UntrustedInputError, match="another network than it stands for"):
            package(built)
        plan.write_bytes(own[0][:-1] + b"!")
        sidecar_path(plan).write_bytes(own[1])
        with pytest.raises(UntrustedInputError, match="describes another engine"):
            package(built)
        (deploy / "plain" / "model.int8.plan").write_bytes(b"another")
        done = check(deploy / "plain")
        assert done.returncode == 7
        assert "model.int8.plan was changed" in done.stderr
