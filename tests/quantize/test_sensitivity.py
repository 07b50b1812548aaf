"""What one layer costs, against the same figures computed in numpy."""

import math

import numpy as np
import pytest
from onnx import helper

from tests.quantize.graphs import RESIDUAL_RANGES, images, network, residual, rounded, run
from trt_layermerge.quantize.qdq import quantizable, quantize_model
from trt_layermerge.quantize.sensitivity import LayerError, divergence, sensitivities


def test_the_ratio_of_a_pointwise_convolution():
    weight = np.array([[1.27, -0.634]])[:, :, None, None]
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    model = network([node], ("n", 2, 6, 6), {"w": weight})
    x = images(5)[:, :2]
    (layer,) = sensitivities(model, {"x": 3.0}, x, kl_images=0)
    step = float(np.float16(3 / 127))
    clean = np.einsum("oi,nihw->nohw", weight[:, :, 0, 0].astype(np.float32), x)
    noisy = np.einsum(
        "oi,nihw->nohw", rounded(weight[:, :, 0, 0], float(np.float16(0.01))), rounded(x, step)
    )
    expected = 10 * math.log10((clean**2).sum() / ((clean - noisy) ** 2).sum())
    assert (layer.name, layer.op, layer.kl) == ("conv", "Conv", None)
    assert layer.sqnr_db == pytest.approx(expected, abs=1e-2)  # sums in float32


def test_each_layer_is_judged_alone():
    """The others stay float: its error is that of a model in which only it is quantised."""
    model, x = residual(), images(6)
    names = quantizable(model)
    outputs = {"first": "c1", "depth": "c2", "sum": "s", "head": "y"}
    found = sensitivities(model, RESIDUAL_RANGES, x, kl_images=6)
    assert tuple(layer.name for layer in found) == names
    for layer in found:
        alone = quantize_model(model, RESIDUAL_RANGES, set(names) - {layer.name})
        clean, noisy = (run(m, x, [outputs[layer.name]])[0] for m in (model, alone))
        ratio = 10 * np.log10((clean**2).sum() / ((clean - noisy) ** 2).sum())
        assert layer.sqnr_db == pytest.approx(ratio, abs=1e-2)
        expected = divergence(run(model, x)[0], run(alone, x)[0], "classes")
        assert layer.kl == pytest.approx(expected, rel=1e-3)
        assert layer.kl > 0


def test_a_bad_range_stands_out():
    bad = {**RESIDUAL_RANGES, "r1": 1.0}
    found = sensitivities(residual(), bad, images(16))
    assert max(found, key=lambda layer: layer.kl).name == "depth"
    assert min(found, key=lambda layer: layer.sqnr_db).name == "depth"


def test_static_batches_do_not_matter():
    x = images(6)
    one, free = (
        sensitivities(residual(batch=batch), RESIDUAL_RANGES, x, kl_images=4) for batch in (1, "n")
    )
    for a, b in zip(one, free, strict=True):
        assert a.sqnr_db == pytest.approx(b.sqnr_db, abs=1e-2)
        assert a.kl == pytest.approx(b.kl, rel=1e-2)


def test_divergence_by_hand():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    reference, other = (np.log(v)[None].astype(np.float32) + 7 for v in (p, q))
    expected = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert divergence(reference, other, "classes") == pytest.approx(expected, rel=1e-5)
    assert divergence(reference, reference - 3, "classes") == pytest.approx(0, abs=1e-6)
    assert math.isfinite(divergence(np.float32([[1e4, 0]]), np.float32([[0, 1e4]]), "classes"))
    yes = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    found = divergence(np.float32([[0.5, 1]]), np.float32([[0.25, 1]]), "probabilities")
    assert found == pytest.approx(yes / 2)


def test_no_noise_is_written_as_none():
    assert LayerError("a", "Conv", math.inf).to_json()["sqnr_db"] is None
