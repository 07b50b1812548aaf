"""Engines of the tiny project timed and verified, on a GPU that exists only here.

An engine is the text ``plan`` and the ONNX model that ONNX Runtime runs in its place.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.pipeline import tiny
from trt_layermerge.backends import Backend, Runner, get_backend
from trt_layermerge.backends.fake import FakeBackend
from trt_layermerge.backends.tensorrt import EngineBuild
from trt_layermerge.core.device import DeviceInfo, Precision
from trt_layermerge.core.jsonio import sha256_json
from trt_layermerge.deploy import engines
from trt_layermerge.deploy.machine import Machine
from trt_layermerge.deploy.sidecar import Network, Origin, sidecar_path, write_engine
from trt_layermerge.errors import AccuracyGateError, DeviceError, UntrustedInputError
from trt_layermerge.export.batch import with_batch
from trt_layermerge.export.fp16 import to_precision
from trt_layermerge.pipeline.api import open_run, run_stage, stage
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.session.built import Built, identity_of
from trt_layermerge.session.deployed import deployed_model
from trt_layermerge.session.session import Session
from trt_layermerge.session.verifying import bisect_command

GPU = Machine("A GPU", "8.7", "12.6", "L4T 36.4.3", "25W")
FILES: dict[Network, str] = {"original": "original.onnx", "merged": "model.onnx"}


class OnGpu(FakeBackend):
    """The fake device under the name of TensorRT."""

    name = "tensorrt"
    int8_fallback: Precision = "fp16"

    def device(self) -> DeviceInfo:
        return DeviceInfo("tensorrt", "10.3.0", "A GPU", "compute capability 8.7")


@dataclass
class Bench:
    """A run with a GPU: what is loaded on it, and at which batch.

    Attributes:
        folder: Folder of the run.
        loaded: The engines that were loaded, by network, with the batch that was asked for.
    """

    folder: Path
    loaded: list[tuple[str, int | None]] = field(default_factory=list)

    def model(self, network: Network, precision: Precision) -> bytes:
        """Returns what an engine is made of."""
        model = (self.folder / FILES[network]).read_bytes()
        return to_precision(model, precision, keep_io=True)

    def build(
        self,
        *precisions: Precision,
        profile: tuple[int, int, int] | None = None,
        make: Callable[[Network, bytes], bytes] = lambda network, model: model,
    ) -> dict[str, Path]:
        """Writes engines of both networks, sidecars and ``build.json``; returns their paths."""
        plans, rows = {}, []
        for precision in precisions:
            for network in FILES:
                model = make(network, self.model(network, precision))
                shapes = tuple((n, 3, 16, 16) for n in profile or ())
                found = EngineBuild(
                    plan=f"plan {network} ".encode() + model,
                    seconds=1.0,
                    library="tensorrt",
                    version="10.3.0",
                    log=(),
                    precision=precision,
                    inputs={"input": (1, 3, 16, 16)},
                    outputs={"logits": (1, 4)},
                    settings={"typing": "strong"},
                    profile={"input": shapes} if profile else {},  # type: ignore[dict-item]
                )
                wanted = identity_of(self.folder, Built(network, precision, None, None))
                origin = Origin(wanted.onnx_sha256, wanted.weights_sha256, {}, None, "", 0)
                plan = write_engine(self.folder / "engines", found, origin, GPU, network)
                plans[plan.name] = plan
                row = {"network": network, "precision": precision, "error": None}
                rows.append({**row, "plan": str(plan.relative_to(self.folder))})
        tiny.replace_output(self.folder / "build.json", "build", {"engines": rows})
        return plans

    def note_settings(self, options: RunOptions) -> None:
        """Notes that these are what the engines were built by."""
        asked = stage("build").settings(open_run(None, options, NullReporter()))
        state = json.loads((self.folder / "state.json").read_text())
        noted = {key: sha256_json(value) for key, value in asked.items()}
        state["stages"]["build"]["settings"] = noted
        (self.folder / "state.json").write_text(json.dumps(state))


@pytest.fixture
def gpu(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Returns the tiny run on a machine with a GPU."""
    bench = Bench(runs / "tiny")

    def load(plan: bytes, api: Any, *, seed: int = 0, batch: int | None = None) -> Runner:
        _, network, model = plan.split(b" ", 2)
        bench.loaded.append((network.decode(), batch))
        fixed = model if batch is None else with_batch(model, batch)
        return get_backend("onnxruntime").open(fixed, seed=seed)

    api = SimpleNamespace(flavor="tensorrt", version="10.3.0")
    monkeypatch.setattr(engines, "load_api", lambda flavor: api)
    monkeypatch.setattr(engines, "load_engine", load)
    monkeypatch.setattr(engines, "this_machine", lambda: GPU)
    backend: Backend = OnGpu()
    monkeypatch.setattr(Session, "backend", property(lambda self: backend))
    return bench


def asked(gpu: Bench, *precisions: Precision, **overrides: Any) -> RunOptions:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    wanted = {"build.engine": "tensorrt", "build.precisions": list(precisions)}
    options = RunOptions("tiny", gpu.folder.parent, overrides={**wanted, **dotted})
    gpu.note_settings(options)
    return options


def latencies(plans: dict[str, Path]) -> dict[str, Any]:
    return {
        name: json.loads(sidecar_path(plan).read_text())["latency"] for name, plan in plans.items()
    }


def test_the_engines_that_were_built_are_timed_and_told(gpu: Bench) -> None:
    plans = gpu.build("fp32", "fp16")
    options = asked(gpu, "fp32", "fp16", measure__backend="tensorrt", measure__precision="fp16")
    body = run_stage("bench", options)
    assert sorted(gpu.loaded) == [("merged", None)] * 2 + [("original", None)] * 2
    assert [pair["precision"] for pair in body["precisions"]] == ["fp32", "fp16"]
    told = latencies(plans)
    for pair in body["precisions"]:
        for side, stem in (("original", "original"), ("merged", "model")):
            expected = {name: pair[side][name] for name in ("p50_ms", "p99_ms")}
            assert told[f"{stem}.{pair['precision']}.plan"] == expected
    assert body["comparable"] is False and "cannot be read" in body["reason"]
    assert "nvidia-smi does not tell" in body["power_note"]


def test_what_has_no_engine_is_built_for_the_occasion(gpu: Bench) -> None:
    plans = gpu.build("fp32")
    options = asked(gpu, "fp32", "fp16", measure__backend="tensorrt", measure__precision="fp16")
    body = run_stage("bench", options)
    assert len(gpu.loaded) == 2
    assert [pair["precision"] for pair in body["precisions"]] == ["fp32", "fp16"]
    assert set(latencies(plans)) == {"original.fp32.plan", "model.fp32.plan"}


def test_an_engine_of_another_machine_is_left_alone(
    gpu: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = gpu.build("fp32")
    other = Machine("Another GPU", "8.9", "12.6")
    monkeypatch.setattr(engines, "this_machine", lambda: other)
    run_stage("bench", asked(gpu, "fp32", measure__backend="tensorrt"))
    assert gpu.loaded == [] and set(latencies(plans).values()) == {None}


def test_a_changed_engine_stops_the_benchmark(gpu: Bench) -> None:
    plan = gpu.build("fp32")["model.fp32.plan"]
    plan.write_bytes(plan.read_bytes() + b"x")
    with pytest.raises(UntrustedInputError, match="another engine") as caught:
        run_stage("bench", asked(gpu, "fp32", measure__backend="tensorrt"))
    assert caught.value.exit_code == 7 and gpu.loaded == []


@pytest.mark.parametrize("stage", ["bench", "verify"])
def test_an_engine_of_the_other_network_is_not_loaded_in_its_place(gpu: Bench, stage: str) -> None:
    """Copied with its sidecar, which says the truth about it."""
    plans = gpu.build("fp32")
    for path in (lambda p: p, sidecar_path):
        path(plans["model.fp32.plan"]).write_bytes(path(plans["original.fp32.plan"]).read_bytes())
    with pytest.raises(UntrustedInputError, match="another network than it stands for"):
        run_stage(stage, asked(gpu, "fp32", measure__backend="tensorrt"))
    assert gpu.loaded == []


def test_every_engine_of_both_networks_is_compared_with_torch(gpu: Bench) -> None:
    plans = gpu.build("fp32", "fp16")
    body = run_stage("verify", asked(gpu, "fp32", "fp16"))
    found = {c["name"]: c for c in body["comparisons"]}
    expected = {f"{s}.{p}.plan" for s in ("original", "model") for p in ("fp32", "fp16")}
    expected |= {f"{s}{p}.onnx" for s in ("original", "model") for p in ("", ".fp16")}
    assert set(found) == expected
    for name, comparison in found.items():
        assert comparison["network"] == ("original" if "original" in name else "merged")
        assert comparison["reason"] is None and comparison["agreement"] >= 0.98
        assert comparison["max_rel"] <= (1e-5 if "fp16" not in name else 2e-2)
    sidecar = json.loads(sidecar_path(plans["model.fp16.plan"]).read_text())
    assert sidecar["accuracy"]["engine"] == found["model.fp16.plan"]["accuracy"]
    assert not any("engine" in sentence for sentence in body["unverified"])


def test_an_engine_of_several_batches_is_compared_at_the_ends_of_its_profile(gpu: Bench) -> None:
    gpu.build("fp32", profile=(1, 4, 8))
    body = run_stage("verify", asked(gpu, "fp32"))
    names = [c["name"] for c in body["comparisons"] if c["name"].startswith("model.fp32.plan")]
    assert names == ["model.fp32.plan", "model.fp32.plan at batch 1", "model.fp32.plan at batch 8"]
    assert {batch for _, batch in gpu.loaded} == {None, 1, 8}
    assert all(c["max_rel"] <= 1e-5 for c in body["comparisons"])


def test_a_wrong_engine_is_told_with_the_command_that_finds_the_layer(gpu: Bench) -> None:
    def mixed_up(network: Network, model: bytes) -> bytes:
        return gpu.model("original", "fp32") if network == "merged" else model

    gpu.build("fp32", make=mixed_up)
    with pytest.raises(AccuracyGateError, match=r"model\.fp32\.plan differs from the merged") as e:
        run_stage("verify", asked(gpu, "fp32"))
    left = gpu.folder / "debug" / "model.fp32.onnx"
    assert left.read_bytes() == deployed_model(gpu.folder, "merged", "fp32", "fp32", batch=1)
    assert f"find the layer: polygraphy debug reduce {left} -o reduced.onnx" in str(e.value)
    assert not (gpu.folder / "debug" / "original.fp32.onnx").exists()


def test_an_engine_that_cannot_run_here_is_listed_with_the_reason(
    gpu: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Runner:
        raise DeviceError("out of memory")

    gpu.build("fp16")
    monkeypatch.setattr(engines, "load_engine", refuse)
    body = run_stage("verify", asked(gpu, "fp16"))
    assert "model.fp16.plan, original.fp16.plan were not run: out of memory" in body["unverified"]


def test_the_command_fits_the_library() -> None:
    sidecar = SimpleNamespace(library="tensorrt", settings={"typing": "weak FP16 INT8"})
    old = bisect_command("m.onnx", 0.05, sidecar)  # type: ignore[arg-type]
    assert old.endswith("--onnxrt --trt --fp16 --int8 --atol 0.05 --rtol 0.05")
    rtx = SimpleNamespace(library="tensorrt_rtx", settings={"typing": "strong"})
    new = bisect_command("m.onnx", None, rtx)  # type: ignore[arg-type]
    assert new.startswith("POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy debug reduce m.onnx")
    assert "--trt --strongly-typed" in new
