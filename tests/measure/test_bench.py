"""Both networks side by side: percentiles, throughput and speed-up, without a real clock."""

import json
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trt_layermerge.backends.fake import FakeBackend
from trt_layermerge.errors import DeviceError, UsageError
from trt_layermerge.measure.bench import bench
from trt_layermerge.measure.timing import Timing, time_models


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
    return FakeBackend(overhead_ms=0.0, ms_per_mib=0.0, ms_per_gmac=1000.0, **options)


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
    again = time_models([chain(4), chain(2)], backend(noise=0.5, seed=3), rounds=8, burst_ms=10.0)
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
    body = json.loads(json.dumps(bench(chain(2), chain(1), backend(), batch=1, rounds=3).to_json()))
    assert set(body["original"]) == {
        "p10_ms", "p50_ms", "p90_ms", "p99_ms", "best_ms", "throughput", "runs"
    }  # fmt: skip
    assert body["device"]["backend"] == "fake"
    assert (body["batch"], body["rounds"]) == (1, 3)
    assert body["low"] <= body["speedup"] <= body["high"]
    assert "percentile" in body["spread"]
    assert "load average" in body["clocks"]
    assert body["power_w"] is None and body["power_note"]


def test_refusals():
    with pytest.raises(UsageError, match="at least 1"):
        bench(chain(1), chain(1), backend(), batch=0)
    with pytest.raises(UsageError, match="at least 1"):
        bench(chain(1), chain(1), backend(), batch=1, rounds=0)
    with pytest.raises(DeviceError, match="out of memory"):
        bench(chain(1), chain(2, "bad"), backend(failing={"bad": "out of memory"}), batch=1)


def test_samples_count_the_runs():
    assert Timing((1.0, 2.0), (1.0, 1.0, 2.0)).samples == 3
