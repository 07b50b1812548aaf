"""Layers go back to float only where the gate asks for it, the worst ones first, and are named."""

import numpy as np
import pytest
from onnx import helper

from tests.quantize.graphs import RESIDUAL_RANGES, images, network, residual, run
from trt_layermerge.errors import AccuracyGateError, CorruptInputError, UsageError
from trt_layermerge.quantize.choose import _fewest, choose_layers
from trt_layermerge.quantize.preset import Preset
from trt_layermerge.quantize.qdq import quantize_model
from trt_layermerge.quantize.ranges import calibrate_ranges

SPOILT = {**RESIDUAL_RANGES, "r1": 1.0}
"""The depthwise convolution sees a range 18 times too small; nothing else does."""


def judged(count=200):
    x = images(count)
    return x, run(residual(), x)[0].argmax(axis=1)


def test_nothing_stays_in_float_where_nothing_is_lost():
    x, labels = judged()
    preset = Preset(method="minmax", max_accuracy_drop=0.02)
    ranges = calibrate_ranges(residual(), [images(50, seed=2)], preset)
    found = choose_layers(residual(), ranges, x, labels, preset)
    assert found.keep_float == ()
    assert (found.accuracy_fp32, found.images) == (1.0, 200)
    assert found.accuracy_int8 == found.agreement >= 0.98
    assert found.model == quantize_model(residual(), found.ranges)
    assert [layer.name for layer in found.layers] == ["first", "depth", "sum", "head"]
    assert all(layer.sqnr_db > 20 and layer.kl is None for layer in found.layers)


@pytest.mark.parametrize("with_labels", [True, False])
def test_the_spoilt_layer_stays_in_float_and_is_named(with_labels):
    x, labels = judged()
    preset = Preset(max_accuracy_drop=0.02)
    everything = run(quantize_model(residual(), SPOILT), x)[0].argmax(axis=1)
    assert (everything == labels).mean() < 0.9  # what the gate is there for
    found = choose_layers(residual(), SPOILT, x, labels if with_labels else None, preset)
    assert found.keep_float == ("depth",)
    assert found.loss <= 0.02
    assert found.model == quantize_model(residual(), SPOILT, ["depth"])
    assert (found.accuracy_fp32 is None) == (not with_labels)
    assert all(layer.kl is not None for layer in found.layers)


def test_layers_that_always_stay_in_float():
    x, labels = judged()
    preset = Preset(keep_float=("head", "first"), max_float_layers=0)
    found = choose_layers(residual(), RESIDUAL_RANGES, x, labels, preset)
    assert found.keep_float == ("first", "head")
    with pytest.raises(UsageError, match="tail"):
        choose_layers(residual(), SPOILT, x, labels, Preset(keep_float=("tail",)))


@pytest.mark.parametrize("with_labels", [True, False])
def test_too_few_layers_to_save_it(with_labels):
    x, labels = judged()
    preset = Preset(max_accuracy_drop=0.02, max_float_layers=0)
    words = (
        r"loses .* points of accuracy on 200 images \(100.00% to .*more than the 2.00 allowed"
        if with_labels
        else "changes the class of .*% of 200 images, more than the 2.00 allowed"
    )
    with pytest.raises(AccuracyGateError, match=words):
        choose_layers(residual(), SPOILT, x, labels if with_labels else None, preset)
    ruined = dict.fromkeys(RESIDUAL_RANGES, 1e-3)
    with pytest.raises(AccuracyGateError, match="max_float_layers or max_accuracy_drop"):
        choose_layers(residual(), ruined, x, labels, Preset(max_float_layers=1))


def test_images_that_cannot_be_judged():
    x, labels = judged(4)
    with pytest.raises(UsageError, match="no images"):
        choose_layers(residual(), RESIDUAL_RANGES, x[:0], labels[:0], Preset())
    x[0, 0, 0, 0] = np.inf
    with pytest.raises(CorruptInputError, match="not finite"):
        choose_layers(residual(), RESIDUAL_RANGES, x, labels, Preset())


@pytest.mark.parametrize("most", [0, 1, 2, 5, 8])
@pytest.mark.parametrize("needed", range(10))
def test_the_fewest_that_pass(needed, most):
    tried = []

    def attempt(count):
        tried.append(count)
        return count if count >= needed else None

    expected = max(needed, 1) if needed <= most and most else None  # 0 was tried before
    assert _fewest(attempt, most) == expected
    assert len(tried) == len(set(tried)) <= 7


@pytest.mark.parametrize("with_labels", [True, False])
def test_one_output_is_not_judged_by_its_only_class(with_labels):
    """Ranges that clip almost everything: every answer is wrong, and argmax is always 0."""
    node = helper.make_node("Conv", ["x", "w"], ["c"], "conv")
    flat = helper.make_node("Flatten", ["c"], ["y"], "flat")
    model = network([node, flat], ("n", 1, 1, 1), {"w": np.ones((1, 1, 1, 1))})
    x = np.random.default_rng(0).normal(3, 0.5, (50, 1, 1, 1)).astype(np.float32)
    labels = np.zeros(50, np.int64) if with_labels else None
    with pytest.raises(AccuracyGateError, match=r"100\.00% of 50 images"):
        choose_layers(model, {"x": 0.003}, x, labels, Preset(max_float_layers=0))
    assert choose_layers(model, {"x": 6.0}, x, labels, Preset()).agreement == 1
