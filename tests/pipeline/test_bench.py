"""``bench`` of the tiny project: what is timed, what is not and why, and the latency gates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline import tiny
from trt_layermerge.backends.fake import FakeBackend
from trt_layermerge.errors import DeviceError, LatencyGateError, UntrustedInputError, UsageError
from trt_layermerge.measure.agent.sources import Reading
from trt_layermerge.measure.agent.telemetry import DeviceState, GpuClock
from trt_layermerge.measure.conditions import Conditions
from trt_layermerge.measure.meter import BackendMeter, Failed
from trt_layermerge.pipeline.api import open_run, run_stage
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.pipeline.stages.bench import STAGE
from trt_layermerge.session import benching
from trt_layermerge.session.deployed import deployed_model
from trt_layermerge.session.session import Session
from trt_layermerge.session.settings import MeasureSection


def asked(runs: Path, **overrides: Any) -> RunOptions:
    """Returns a request for the tiny run; underscores stand for the dot of a recipe key."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return RunOptions("tiny", runs, overrides=dotted)


def swapped(folder: Path, network: str, *rest: Any, **options: Any) -> bytes:
    """Returns the merged network where the original is asked for, and the other way round."""
    other = {"original": "merged", "merged": "original"}[network]
    return deployed_model(folder, other, *rest, **options)  # type: ignore[arg-type]


def test_what_was_measured_stands_at_the_top_and_every_precision_below(runs: Path) -> None:
    body = run_stage("bench", asked(runs, measure__precision="fp16"))
    assert body["precision"] == "fp16" and body["untimed"] == []
    (pair,) = body["precisions"]
    assert {name: body[name] for name in ("original", "merged", "speedup", "low", "high")} == {
        name: pair[name] for name in ("original", "merged", "speedup", "low", "high")
    }
    assert body["comparable"] is True and body["wall"] is None
    assert "not read" in body["power_note"]


def test_what_is_built_is_timed_too(runs: Path) -> None:
    both = asked(runs, build__engine="auto", build__precisions=["fp32", "fp16"])
    with pytest.raises(
        UsageError, match=r"build of the run 'tiny' was done with other .*\(build\)"
    ):
        run_stage("bench", both)
    run_stage("build", both)
    assert [p["precision"] for p in run_stage("bench", both)["precisions"]] == ["fp32", "fp16"]


def test_a_processor_does_not_time_half_precision_but_says_so(runs: Path) -> None:
    where = {"measure__backend": "onnxruntime", "build__engine": "auto"}
    options = asked(runs, **where, build__precisions=["fp32", "fp16"])
    run_stage("build", options)
    body = run_stage("bench", options)
    assert [p["precision"] for p in body["precisions"]] == ["fp32"]
    (untimed,) = body["untimed"]
    assert untimed["precision"] == "fp16" and "through casts" in untimed["reason"]
    assert body["comparable"] is True
    assert set(body["wall"]["merged"]) == {"p50_ms", "p90_ms", "p99_ms"}
    assert 0 < body["wall"]["merged"]["p50_ms"] <= body["wall"]["merged"]["p99_ms"]


def test_a_network_that_is_slower_than_the_original_fails(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benching, "deployed_model", swapped)
    summary = (runs / "tiny" / "summary.json").read_bytes()
    for _ in range(2):  # the second time nothing is left to do, and the gate still fails
        with pytest.raises(LatencyGateError, match=r"slower than the original at fp32") as caught:
            tiny.run(runs, from_stage="bench")
        assert caught.value.exit_code == 6
    body = json.loads((runs / "tiny" / "bench.json").read_text())
    assert body["high"] < 1
    assert (runs / "tiny" / "summary.json").read_bytes() != summary  # the report is written
    with pytest.raises(LatencyGateError, match="never_slower=false"):
        run_stage("bench", asked(runs))
    run_stage("bench", asked(runs, verify__never_slower=False))


def test_the_original_itself_is_not_slower_beyond_the_spread(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def same(folder: Path, network: str, *rest: Any, **options: Any) -> bytes:
        return deployed_model(folder, "original", *rest, **options)

    monkeypatch.setattr(benching, "deployed_model", same)
    assert tiny.run(runs, only_stage="bench")[0]["speedup"] == pytest.approx(1)
    run_stage("bench", asked(runs))


@pytest.mark.parametrize(
    ("low", "high", "slower"), [(0.97, 1.01, False), (1.0, 1.2, False), (0.9, 0.99, True)]
)
def test_slower_means_that_the_whole_spread_of_the_rounds_is(
    runs: Path, low: float, high: float, slower: bool
) -> None:
    path = runs / "tiny" / "bench.json"
    body = json.loads(path.read_text())
    (pair,) = body["precisions"]
    pair.update(low=low, speedup=(low + high) / 2, high=high)
    path.write_text(json.dumps(body))
    context = open_run(None, asked(runs), NullReporter())
    if not slower:
        return STAGE.gate(context)
    with pytest.raises(LatencyGateError, match=rf"\({low:.3f} to {high:.3f}, "):
        STAGE.gate(context)


def test_a_limit_in_ms_is_held_without_measuring_again(runs: Path) -> None:
    body = run_stage("bench", asked(runs))
    took = (runs / "tiny" / "bench.json").stat().st_mtime_ns
    limit = body["merged"]["p50_ms"]
    run_stage("bench", asked(runs, verify__max_latency_ms=limit))
    with pytest.raises(LatencyGateError, match=r"takes .* ms at fp32 in the median, .* allowed"):
        run_stage("bench", asked(runs, verify__max_latency_ms=0.999 * limit))
    assert (runs / "tiny" / "bench.json").stat().st_mtime_ns == took


def test_an_engine_that_does_not_belong_to_its_sidecar_is_not_timed(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs / "tiny"
    (folder / "stranger.plan").write_bytes(b"no engine")
    built = [
        {"network": network, "precision": "fp32", "plan": "stranger.plan", "error": None}
        for network in ("original", "merged")
    ]
    tiny.replace_output(folder / "build.json", "build", {"engines": built})
    monkeypatch.setattr(MeasureSection, "engines", True)
    with pytest.raises(UntrustedInputError, match="--trust-engine") as caught:
        run_stage("bench", asked(runs))
    assert caught.value.exit_code == 7


class Elsewhere(BackendMeter):
    """The fake device, as if it were far away: it is asked for one pair at a time."""

    def __init__(self) -> None:
        super().__init__(FakeBackend())
        self.asked = 0

    def networks(self, original: bytes, others: Any, *rest: Any) -> Any:
        self.asked += 1
        found = super().networks(original, others, *rest)
        clock = Reading(GpuClock(624, (624, 624), True))
        seen = Conditions(DeviceState(624), DeviceState(624 - self.asked), clock, cores=None)
        return [replace(outcome, conditions=seen) for outcome in found]


def test_another_device_is_asked_for_every_precision(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = run_stage("bench", asked(runs))
    meter = Elsewhere()
    monkeypatch.setattr(Session, "meter", property(lambda self: meter))
    wanted = {"build__engine": "auto", "build__precisions": ["fp32", "fp16"]}
    run_stage("build", asked(runs, **wanted))
    body = run_stage("bench", asked(runs, measure__host="board", **wanted))
    assert [pair["precision"] for pair in body["precisions"]] == ["fp32", "fp16"]
    assert meter.asked == 2 and body["untimed"] == []
    assert body["merged"]["p50_ms"] == here["merged"]["p50_ms"]
    assert "agent" in body["power_note"]
    assert body["conditions"]["gpu_clock"] == "624 MHz of 624 to 624, locked"
    assert body["conditions"]["after"]["gpu_clock_mhz"] == 622  # of the second pair
    assert body["conditions"]["cores"] is None


def test_a_network_that_fails_elsewhere_is_the_fault_of_the_device(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Elsewhere):
        def networks(self, *_: Any) -> Any:
            return [Failed("killed: out of memory")]

    monkeypatch.setattr(Session, "meter", property(lambda self: Broken()))
    with pytest.raises(DeviceError, match="killed: out of memory"):
        run_stage("bench", asked(runs, measure__host="board"))


def test_int8_is_held_against_the_float_type_that_it_replaces(runs: Path) -> None:
    wanted = {"measure__backend": "onnxruntime", "measure__precision": "int8"}
    options = asked(runs, **wanted, verify__never_slower=False)
    run_stage("calibrate", options)
    run_stage("build", options)
    body = run_stage("bench", options)
    assert [pair["precision"] for pair in body["precisions"]] == ["fp32", "int8"]
    verdict = body["int8"]
    assert verdict["over"] == "fp32"
    assert verdict["low"] <= verdict["speedup"] <= verdict["high"]
    assert verdict["faster"] == (verdict["low"] > 1)
    found = {c["name"] for c in run_stage("verify", options)["comparisons"]}
    assert {"model.int8.onnx", "model.int8-fp16.onnx", "original.int8.onnx"} <= found
    run_stage("report", options)
    page = (runs / "tiny" / "report.md").read_text()
    assert "## What rounding to int8 costs" in page and "the merged int8 network is" in page
