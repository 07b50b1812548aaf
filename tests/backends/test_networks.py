"""Whole networks across backends, and what importing the rooms does not import."""

import subprocess
import sys

import numpy as np

from tests.measure.networks import plan_model, resnet20
from trt_layermerge.backends import get_backend
from trt_layermerge.core.plan import MergePlan

NETWORK = plan_model(resnet20(), MergePlan.of(resnet20(), []), batch=2, classes=10)


def test_three_backends_agree_on_a_whole_network() -> None:
    image = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    outputs = []
    for name in ("onnxruntime", "torch", "fake"):
        with get_backend(name).open(NETWORK) as runner:
            outputs.append(runner.infer({"x": image})["logits"])
    scale = np.abs(outputs[0]).max()
    assert outputs[0].shape == (2, 10)
    for other in outputs[1:]:
        # float32 sums over nine layers in different orders
        assert np.abs(other - outputs[0]).max() < 1e-4 * scale
    assert np.abs(outputs[0][0] - outputs[0][1]).max() > 1e-2 * scale


def test_the_wall_clock_is_another_device() -> None:
    core, wall = get_backend("onnxruntime"), get_backend("onnxruntime", wall=True)
    assert core.device() != wall.device()
    with wall.open(NETWORK) as runner:
        assert min(runner.time_burst(3)) > 0


def test_importing_the_rooms_imports_no_library() -> None:
    code = (
        "import sys, trt_layermerge.backends, trt_layermerge.measure; "
        "print([m for m in ('onnx', 'onnxruntime', 'torch', 'tensorrt') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
