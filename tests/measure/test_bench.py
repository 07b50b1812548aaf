"""Both networks side by side: percentiles, throughput and speed-up, without a real clock."""

import json
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.measure.scripted import ScriptedBackend
from trt_layermerge.errors import DeviceError, UsageError
from trt_layermerge.measure.bench import assemble
from trt_layermerge.measure.bench import bench as bench_all
from trt_layermerge.measure.energy import Energy, energy_of
from trt_layermerge.measure.timing import Timing, Turns, time_models


def chain(depth, name="chain"):
    """Returns ``depth`` 3x3 convolutions of 8 channels on 8x8: equal cost each."""
    values = ["x", *(f"v{i}" for i in range(depth))]
    nodes = [
        helper.make_node("Conv", [a, "w"], [b], pads=[1, 1, 1, 1]) for a, b in pairwise(values)
    ]
    shape = (2, 8, 8, 8)
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(values[-1], TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.ones((8, 8, 3, 3), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def backend(**options):
    return ScriptedBackend(overhead_ms=0.0, ms_per_mib=0.0, ms_per_gmac=1000.0, **options)


def bench(original, merged, where, **options):
    """Benches at a single precision; returns that with the rounds' figures beside."""
    return bench_all({"fp32": (original, merged)}, where, **options)["fp32"]


MACS_MS = 2 * 64 * 8 * 8 * 9 / 1e6  # one convolution, two images


def test_exact_times_without_noise():
    result = bench(chain(6), chain(2), backend(), batch=2, rounds=5)
    for latency, depth in ((result.original, 6), (result.merged, 2)):
        ms = depth * MACS_MS
        figures = (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.best_ms)
        assert figures == pytest.approx((ms,) * 4, rel=1e-9)
        assert latency.throughput == pytest.approx(2000 / ms, rel=1e-9)
        assert latency.runs == 5 * int(np.ceil(10 / ms))
    ratio = (result.ratio.p10, result.ratio.value, result.ratio.p90)
    assert ratio == pytest.approx((3, 3, 3), rel=1e-9)


def test_percentiles_are_those_of_all_runs():
    noisy = backend(noise=0.5, seed=3)
    result = bench(chain(4), chain(2), noisy, batch=1, rounds=8)
    again = time_models(
        [chain(4), chain(2)], backend(noise=0.5, seed=3), Turns(rounds=8, burst_ms=10.0)
    )
    for latency, timing in zip((result.original, result.merged), again, strict=True):
        expected = np.percentile(timing.runs_ms, [50, 90, 99])
        assert (latency.p50_ms, latency.p90_ms, latency.p99_ms) == pytest.approx(expected)
        assert latency.best_ms <= latency.p50_ms <= latency.p90_ms <= latency.p99_ms
    assert result.original.p99_ms > 1.1 * result.original.p50_ms
    assert result.ratio.p10 < result.ratio.value < result.ratio.p90


def test_drifting_clock_leaves_the_speed_up_alone():
    """Everything slows down along the way: one after the other, the second would look slower."""
    drifting = backend(drift=lambda run: 1 + run / 2000)
    result = bench(chain(4), chain(2), drifting, batch=1, rounds=20)
    assert result.original.p99_ms > 1.5 * result.original.best_ms
    assert result.ratio.value == pytest.approx(2, rel=0.05)


def test_json_holds_what_the_report_needs():
    found = bench_all({"fp32": (chain(2), chain(1))}, backend(), batch=1, rounds=3)
    body = json.loads(json.dumps(found.to_json(), allow_nan=False))
    (both,) = body["precisions"]
    assert set(both["original"]) == {
        "p10_ms", "p50_ms", "p90_ms", "p99_ms", "best_ms", "throughput", "runs", "method",
        "enqueue_ms", "power_w", "energy_mj",
    }  # fmt: skip
    assert body["device"]["backend"] == "fake"
    assert (body["batch"], body["rounds"]) == (1, 3)
    assert both["low"] <= both["speedup"] <= both["high"]
    assert "percentile" in body["spread"]
    assert body["comparable"] is True and body["reason"] is None
    assert body["int8"] is None


def test_all_precisions_share_their_rounds_and_int8_is_held_against_the_float_type_it_replaces():
    models = {"fp32": (chain(6), chain(4)), "int8": (chain(3), chain(2))}
    drifting = backend(drift=lambda run: 1 + run / 2000)
    found = bench_all(models, drifting, batch=1, rounds=20)
    assert found["fp32"].ratio.value == pytest.approx(1.5, rel=0.05)
    over, ratio = found.int8
    assert over == "fp32" and ratio.value == pytest.approx(2, rel=0.05)
    assert found.to_json()["int8"]["faster"] is True


def test_int8_within_the_noise_is_not_called_faster():
    even = Timing((1.0, 1.0, 1.0, 1.0), (1.0,) * 4)
    wobbling = Timing((0.9, 1.1, 0.95, 0.8), (1.0,) * 4)
    found = assemble({"fp16": (even, even), "int8": (even, wobbling)}, None, 1, "fp16")
    over, ratio = found.int8
    assert over == "fp16" and ratio.value > 1 > ratio.p10
    assert found.int8[1].p10 == pytest.approx(1 / 1.1 + 0.3 * (1 / 0.95 - 1 / 1.1))
    without = assemble({"fp32": (even, even), "int8": (even, wobbling)}, None, 1, "fp16")
    assert without.int8 is None  # it is not held against a type that it does not replace


def test_how_it_was_timed_and_what_is_doubtful_is_passed_on():
    slow = Timing((1.0, 2.0, 1.0), (1.0, 2.0, 1.0), "graph", 0.9)
    found = assemble({"fp16": (slow, slow)}, None, 1, "fp16")["fp16"]
    assert (found.original.method, found.original.enqueue_ms) == ("graph", 0.9)
    assert [warning.partition(":")[0] for warning in found.warnings] == ["original"] * 2 + [
        "merged"
    ] * 2
    assert "vary by" in found.warnings[0] and "launching" in found.warnings[1]


class Sampler:
    """Says that the machine draws 3 W idle and 5 W while it works."""

    idle_watts, mean_watts, reason = 3.0, 5.0, ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_energy_is_what_is_drawn_above_idle_by_one_run():
    ticks = iter([0.0, 0.5, 1.0, 2.0])
    runs = []

    class Counting(ScriptedBackend):
        def open(self, model, *, seed=0):
            runner = super().open(model, seed=seed)
            burst = runner.time_burst
            runner.time_burst = lambda count: runs.append(count) or burst(count)
            return runner

    spent = energy_of(chain(1), Counting(), Sampler, seconds=2, clock=lambda: next(ticks))
    assert spent.watts == 5 and spent.reason is None
    # Asked at 0, 0.5, 1 and 2 s: two bursts within the two seconds.
    assert spent.millijoules == pytest.approx(1000 * 2 * 2 / sum(runs[-2:]))


def test_power_that_cannot_be_read_is_none_with_the_reason():
    class Silent(Sampler):
        idle_watts, mean_watts, reason = None, None, "no sensor"

    spent = energy_of(chain(1), backend(), Silent, seconds=0)
    assert spent == Energy(reason="no sensor")
    asked = []

    def energy(model, where):
        asked.append(model)
        return energy_of(model, where, Silent, seconds=0)

    models = {p: (chain(2), chain(1)) for p in ("fp32", "fp16")}
    found = bench_all(models, backend(), batch=1, rounds=3, energy=energy)
    assert found.power_note == "no sensor" and len(asked) == 1
    assert found["fp16"].merged.power_w is None


def test_power_of_every_network_is_its_own():
    def energy(model, where):
        return Energy(len(model), 2.0 * len(model))

    models = {"fp32": (chain(2), chain(1))}
    found = bench_all(models, backend(), batch=1, rounds=3, energy=energy)
    sides = found["fp32"].original, found["fp32"].merged
    assert [side.power_w for side in sides] == [len(model) for model in models["fp32"]]
    assert [side.energy_mj for side in sides] == [2 * len(model) for model in models["fp32"]]
    assert found.power_note is None


def test_refusals():
    with pytest.raises(UsageError, match="at least 1"):
        bench(chain(1), chain(1), backend(), batch=0)
    with pytest.raises(UsageError, match="at least 1"):
        bench(chain(1), chain(1), backend(), batch=1, rounds=0)
    with pytest.raises(UsageError, match="0 precisions"):
        bench_all({}, backend(), batch=1)
    with pytest.raises(DeviceError, match="out of memory"):
        bench(chain(1), chain(2, "bad"), backend(failing={"bad": "out of memory"}), batch=1)


def test_samples_count_the_runs():
    assert Timing((1.0, 2.0), (1.0, 1.0, 2.0)).samples == 3
