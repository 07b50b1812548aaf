"""Running an engine, on a fake GPU: what is copied, launched, timed and freed."""

import numpy as np
import pytest

from tests.backends.fake_tensorrt import FakeCudaRuntime, fake_tensorrt
from trt_layermerge.backends.cuda import Cuda, version_words
from trt_layermerge.backends.tensorrt_api import TensorRTApi
from trt_layermerge.backends.tensorrt_runner import EngineRunner
from trt_layermerge.errors import DeviceError, UsageError


@pytest.fixture
def runtime():
    return FakeCudaRuntime()


@pytest.fixture
def library():
    return TensorRTApi(fake_tensorrt("10.3.0"), "tensorrt")


def test_outputs_come_back_from_the_device(runtime, library):
    x = np.arange(18, dtype=np.float32).reshape(1, 2, 3, 3)
    with EngineRunner(library, Cuda(runtime), b"an engine", seed=0) as runner:
        assert runner.input_shapes == {"input": (1, 2, 3, 3)}
        assert runner.output_names == ("logits",)
        np.testing.assert_array_equal(runner.infer({"input": x})["logits"], 2 * x)
        first = runner.infer({"input": x})["logits"]
        runner.infer({"input": -x})
        np.testing.assert_array_equal(first, 2 * x)  # not overwritten by the next run
        with pytest.raises(UsageError, match="takes the inputs"):
            runner.infer({"input": x[:, :1]})


def test_strided_inputs_are_copied_in_order(runtime, library):
    x = np.arange(18, dtype=np.float64).reshape(3, 3, 2, 1).transpose(3, 2, 0, 1)
    with EngineRunner(library, Cuda(runtime), b"an engine", seed=0) as runner:
        np.testing.assert_array_equal(runner.infer({"input": x})["logits"], 2 * x)


def test_times_are_those_between_events(runtime, library):
    with EngineRunner(library, Cuda(runtime), b"an engine", seed=0) as runner:
        assert runner.time_burst(5) == [0.25] * 5
    assert set(runtime.events.values()) == {"destroyed"}


def test_everything_is_freed_once(runtime, library):
    runner = EngineRunner(library, Cuda(runtime), b"an engine", seed=0)
    assert (len(runtime.memory), runtime.streams) == (2, 1)
    runner.close()
    runner.close()
    assert (len(runtime.memory), runtime.streams) == (0, 0)


def test_engine_of_another_version(runtime, library):
    with pytest.raises(DeviceError, match=r"versions differ.*build it again"):
        EngineRunner(library, Cuda(runtime), b"another engine", seed=0)


def test_cuda_errors_are_named(library):
    failing = FakeCudaRuntime(fails=["cudaMalloc"])
    with pytest.raises(DeviceError, match="cudaMalloc failed: out of memory"):
        EngineRunner(library, Cuda(failing), b"an engine", seed=0)


def test_device_is_described(runtime):
    cuda = Cuda(runtime)
    described = (cuda.device_name(), cuda.compute_capability(), cuda.version())
    assert described == ("Fake Orin", "8.7", "12.6")
    assert version_words(13000) == "13.0"


def test_no_gpu_is_refused():
    with pytest.raises(DeviceError, match="no CUDA driver or GPU"):
        Cuda(FakeCudaRuntime(fails=["cudaGetDeviceCount"]))
