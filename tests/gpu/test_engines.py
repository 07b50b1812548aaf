"""Engines on this GPU: numbers against ONNX Runtime, times against one another. Never run yet."""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import pytest

from tests.export.free import free_batch
from tests.gpu.conftest import LARGE, SMALL, Loader
from trt_layermerge.backends import get_backend
from trt_layermerge.backends.cuda import Cuda
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.device import Precision
from trt_layermerge.measure.spec_model import spec_model
from trt_layermerge.measure.timing import Turns, drift, time_models, warm_up

pytestmark = pytest.mark.gpu


def inputs_of(runner, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(s, np.float32) for n, s in runner.input_shapes.items()}


# Largest difference over the largest output: ten bits of mantissa for fp16, sums of 72 products.
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 5e-3)])
def test_an_engine_gives_what_onnx_runtime_gives(
    loader: Loader, cuda: Cuda, precision: Precision, tolerance: float
) -> None:
    model = spec_model(SMALL, precision, 2)
    with (
        get_backend("onnxruntime").open(spec_model(SMALL, "fp32", 2)) as reference,
        loader.open(loader.build(model), cuda) as runner,
    ):
        inputs = inputs_of(reference)
        expected = reference.infer(inputs)["y"]
        actual = runner.infer(inputs)["y"].astype(np.float32)
        assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()
        other = runner.infer(inputs_of(reference, seed=1))["y"].astype(np.float32)
        assert np.abs(other - expected).max() > 0.1 * np.abs(expected).max()
        runner.time_burst(10)  # the graph uses the same buffers, and must not spoil them
        np.testing.assert_array_equal(runner.infer(inputs)["y"].astype(np.float32), actual)


def test_a_dynamic_batch_runs_at_several_sizes(loader: Loader, cuda: Cuda) -> None:
    model = free_batch(spec_model(SMALL, "fp32", 1))
    plan = loader.build(model, profile={"x": ((1, 8, 14, 14), (2, 8, 14, 14), (4, 8, 14, 14))})
    x = np.random.default_rng(0).standard_normal((4, 8, 14, 14), np.float32)
    outputs = []
    for batch in (1, 4):
        with loader.open(plan, cuda, batch=batch) as runner:
            outputs.append(runner.infer({"x": x[:batch]})["y"])
            assert all(ms > 0 for ms in runner.time_burst(3))
    np.testing.assert_allclose(outputs[1][:1], outputs[0], rtol=1e-4, atol=1e-4)


def fastest(runner, rounds: int = 20) -> float:
    """Returns the least round median in ms, once warm."""
    count = warm_up(runner, 2.0)
    return min(median(runner.time_burst(count)) for _ in range(rounds))


def test_a_graph_is_no_slower_than_plain_launches(loader: Loader, cuda: Cuda) -> None:
    """A layer of a few microseconds: launched one by one, the launch is what is measured."""
    if cuda.no_graphs is not None:
        pytest.skip(cuda.no_graphs)
    plan = loader.build(spec_model(SMALL, "fp16", 1))
    with loader.open(plan, cuda) as captured:
        graph_ms = fastest(captured)
        assert (captured.method, captured.no_graph) == ("graph", None)
        assert captured.group > 1
    cuda.no_graphs = "this test wants none"
    with loader.open(plan, cuda) as plain:
        plain_ms = fastest(plain)
        assert plain.method == "enqueue"
    cuda.no_graphs = None
    assert graph_ms <= 1.05 * plain_ms


def test_events_agree_with_the_clock_on_the_wall(loader: Loader, cuda: Cuda) -> None:
    """Half a second of heavy runs: what lies between them is small."""
    with loader.open(loader.build(spec_model(LARGE, "fp32", 8)), cuda) as runner:
        count = warm_up(runner, 500.0)
        started = time.perf_counter()
        times = runner.time_burst(count)
        wall_ms = 1000 * (time.perf_counter() - started)
    assert 0.8 * wall_ms <= sum(times) <= 1.01 * wall_ms


def test_more_work_takes_longer_and_a_second_look_sees_the_same(loader: Loader) -> None:
    backend = get_backend(loader.api.flavor)
    wide = ConvSpec(512, 512, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 56, 56)
    models = [spec_model(LARGE, "fp16", 4), spec_model(wide, "fp16", 4)]
    (first, more), (again, _) = (time_models(models, backend, Turns(rounds=10)) for _ in range(2))
    assert more.ms > 1.5 * first.ms  # four times the work
    assert abs(drift(first, again)) < 0.2  # clocks may be free here; a locked GPU stays below 0.03
    assert first.method == "graph" and first.enqueue_ms is not None
