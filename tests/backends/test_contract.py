"""One suite over every backend that runs here: what the contract promises, for each of them."""

import math
import os
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
import torch

from trt_layermerge.backends import Backend, Runner, get_backend
from trt_layermerge.backends.base import random_inputs
from trt_layermerge.core.conv import AddSpec, ConvSpec
from trt_layermerge.core.device import PRECISIONS, DeviceInfo
from trt_layermerge.errors import (
    CorruptInputError,
    DeviceError,
    LayerMergeError,
    UnsupportedModelError,
    UsageError,
)
from trt_layermerge.measure.spec_model import spec_model

SPEC = ConvSpec(4, 6, (3, 5), (2, 1), (0, 3, 2, 1), (2, 1), 2, 11, 9, "hardswish", True)
OPTIONS = {
    "onnxruntime": {},
    "torch": {},
    "torch-cuda": {"device": "cuda"},
    "fake": {},
    "tensorrt": {},
    "tensorrt_rtx": {},
}


@pytest.fixture(params=OPTIONS, scope="module")
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every backend by name; those that cannot start here are skipped with their own words."""
    try:
        made = get_backend(request.param.removesuffix("-cuda"), **OPTIONS[request.param])
        made.open(spec_model(SPEC, "fp32", 1)).close()
    except DeviceError as error:
        if request.param in ("onnxruntime", "torch", "fake"):
            raise
        pytest.skip(str(error))
    return made


@pytest.fixture
def runner(backend: Backend) -> Iterator[Runner]:
    with backend.open(spec_model(SPEC, "fp32", 2)) as opened:
        yield opened


def reference(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Computes SPEC in float64 by torch."""
    model = onnx.load_model_from_string(spec_model(SPEC, "fp32", 2))
    weight, bias = (
        torch.from_numpy(onnx.numpy_helper.to_array(t).astype(np.float64))
        for t in model.graph.initializer
    )
    x = torch.from_numpy(inputs["x"].astype(np.float64))
    x = torch.nn.functional.pad(x, (3, 1, 0, 2))
    x = torch.nn.functional.conv2d(x, weight, bias, SPEC.stride, 0, SPEC.dilation, SPEC.groups)
    return torch.nn.functional.hardswish(x + torch.from_numpy(inputs["residual"])).numpy()


def test_a_runner_names_its_inputs_and_outputs(runner: Runner) -> None:
    assert runner.input_shapes == {"x": (2, 4, 11, 9), "residual": (2, 6, *SPEC.out_size)}
    assert list(runner.output_names) == ["y"]


def test_numbers_are_right(runner: Runner) -> None:
    rng = np.random.default_rng(3)
    inputs = {n: rng.standard_normal(s, np.float32) for n, s in runner.input_shapes.items()}
    outputs = runner.infer(inputs)
    assert outputs["y"].dtype == np.float32
    # TensorRT may compute fp32 in TF32, with ten bits of mantissa; the others do not.
    assert np.abs(outputs["y"] - reference(inputs)).max() < 2e-2
    wrong = {**inputs, "residual": inputs["residual"] + 0.2}
    assert np.abs(runner.infer(wrong)["y"] - outputs["y"]).max() > 5e-2


def test_wrong_inputs_are_refused(runner: Runner) -> None:
    inputs = {n: np.zeros(s, np.float32) for n, s in runner.input_shapes.items()}
    with pytest.raises(UsageError, match="residual"):
        runner.infer({"x": inputs["x"]})
    with pytest.raises(UsageError, match="11"):
        runner.infer({**inputs, "x": np.zeros((1, 4, 11, 9), np.float32)})


def test_a_burst_gives_one_time_per_run(runner: Runner) -> None:
    times = runner.time_burst(7)
    assert len(times) == 7
    assert all(math.isfinite(t) and 0 < t < 1000 for t in times)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no pinning on this system")
def test_timing_leaves_affinity_and_threads_as_they_were(runner: Runner) -> None:
    before = os.sched_getaffinity(0), torch.get_num_threads()
    runner.time_burst(2)
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == before


def test_closing_twice_is_harmless(backend: Backend) -> None:
    runner = backend.open(spec_model(AddSpec(3, 5, 4), "fp32", 1))
    runner.close()
    runner.close()


@pytest.mark.parametrize(
    "damaged", [b"", b"hello world", spec_model(SPEC, "fp32", 1)[:-40]], ids=["no", "text", "cut"]
)
def test_what_is_no_model_is_refused(backend: Backend, damaged: bytes) -> None:
    with pytest.raises((DeviceError, CorruptInputError)):
        backend.open(damaged)


def test_unknown_operators_are_refused_by_name(backend: Backend) -> None:
    model = onnx.load_model_from_string(spec_model(AddSpec(3, 5, 4), "fp32", 1))
    model.graph.node[0].op_type = "Frobnicate"
    with pytest.raises((DeviceError, UnsupportedModelError), match="Frobnicate"):
        backend.open(model.SerializeToString())


def test_the_device_is_described(backend: Backend) -> None:
    device = backend.device()
    assert device.backend == backend.name
    assert device.name
    assert device.backend_version
    assert DeviceInfo.from_json(device.to_json()) == device
    assert set(backend.precisions()) <= set(PRECISIONS)
    assert "fp32" in backend.precisions()


def test_bound_inputs_depend_on_the_seed_only(backend: Backend) -> None:
    """Timing inputs are random but the same every time; a run with either seed takes some time."""
    for seed in (0, 1):
        with backend.open(spec_model(SPEC, "fp32", 1), seed=seed) as runner:
            assert len(runner.time_burst(1)) == 1


def test_unknown_backends_and_options_are_refused() -> None:
    with pytest.raises(UsageError, match="onnxruntime, torch"):
        get_backend("caffe")
    with pytest.raises(UsageError, match="colour"):
        get_backend("fake", colour="red")
    with pytest.raises(LayerMergeError, match="tpu"):
        get_backend("torch", device="tpu")


def test_whole_numbers_are_timed_at_zero_and_change_no_other_input() -> None:
    shapes, floats = {"t": (2,), "x": (2, 3)}, np.dtype(np.float32)
    drawn = random_inputs(shapes, {"t": np.dtype(np.int64), "x": floats}, 0)
    assert drawn["t"].dtype == np.int64 and not drawn["t"].any()
    alone = random_inputs({"x": (2, 3)}, {"x": floats}, 0)
    assert np.array_equal(drawn["x"], alone["x"]) and alone["x"].any()
