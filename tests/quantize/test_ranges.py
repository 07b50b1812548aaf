"""Calibration against ranges found by hand, in batches of any size."""

import tracemalloc

import numpy as np
import pytest
from onnx import helper

from tests.quantize.graphs import images, network, residual, run
from trt_layermerge.errors import CorruptInputError, DeviceError, UsageError
from trt_layermerge.quantize.preset import METHODS, Preset
from trt_layermerge.quantize.qdq import activations
from trt_layermerge.quantize.ranges import calibrate_ranges, fixed_ranges

MINMAX = Preset(method="minmax")


def pointwise(batch="n"):
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    return network([node], (batch, 1, 100, 100), {"w": np.ones((1, 1, 1, 1))})


def uniform(count, outlier=None):
    """Returns images with values in [-1, 1), and one value somewhere that is not."""
    values = np.random.default_rng(0).uniform(-1, 1, (count, 1, 100, 100)).astype(np.float32)
    if outlier is not None:
        values[0, 0, 3, 4] = outlier
    return values


def test_minmax_is_the_largest_magnitude_of_all_images():
    model, x = residual(), images(10)
    ranges = calibrate_ranges(model, [x[:3], x[3:4], x[4:]], MINMAX)
    assert list(ranges) == ["start", "r1", "f"] == list(activations(model))
    inner = run(model, x, list(ranges))
    for (name, magnitude), values in zip(ranges.items(), inner, strict=True):
        # batches of another size may sum in another order
        assert magnitude == pytest.approx(np.abs(values).max(), rel=1e-5), name


def test_minmax_takes_the_sign_off():
    assert calibrate_ranges(pointwise(), [uniform(2, -9)], MINMAX) == {"x": 9.0}


@pytest.mark.parametrize(("percentile", "expected"), [(99.9, 0.999), (90.0, 0.9), (50.0, 0.5)])
def test_percentile_covers_its_share(percentile, expected):
    preset = Preset(method="percentile", percentile=percentile)
    found = calibrate_ranges(pointwise(), [uniform(5)], preset)["x"]
    assert found == pytest.approx(expected, abs=0.005)  # 50,000 values in 2,048 bins


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_a_lonely_value_is_left_out(method):
    x = uniform(5, outlier=20.0)
    found = calibrate_ranges(pointwise(), [x], Preset(method=method, percentile=99.9))["x"]
    assert 0.9 < found < 5.0
    assert calibrate_ranges(pointwise(), [x], MINMAX)["x"] == 20.0


@pytest.mark.parametrize("method", METHODS)
def test_the_same_images_give_the_same_ranges(method, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    preset, x = Preset(method=method), np.random.default_rng(0).standard_normal((8, 1, 100, 100))
    first, again = (
        calibrate_ranges(pointwise(), (b.astype(np.float32) for b in np.split(x, 2)), preset)
        for _ in range(2)
    )
    assert first == again
    assert type(first["x"]) is float and 1 < first["x"] < 6
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_static_batch_takes_what_comes():
    """Seven images in batches of one, five and one, for a model of four: none is lost."""
    x = uniform(7)
    for position in range(7):
        x[position, 0, 0, 0] = 2 + position
        found = calibrate_ranges(pointwise(4), [x[:1], x[1:6], x[6:]], MINMAX)
        assert found == {"x": 2.0 + position}


def test_silence_has_range_zero():
    assert calibrate_ranges(pointwise(), [0 * uniform(1)], MINMAX) == {"x": 0.0}


def test_fixed_ranges_need_no_images():
    assert fixed_ranges(residual()) == {"start": 6.0, "r1": 6.0, "f": 6.0}


def test_bad_images_are_refused():
    with pytest.raises(CorruptInputError, match="not finite"):
        calibrate_ranges(pointwise(), [uniform(1, np.nan)], MINMAX)
    with pytest.raises(UsageError, match="no images"):
        calibrate_ranges(pointwise(), [], MINMAX)
    with pytest.raises(DeviceError, match=r"shape \(1, 1, 9, 9\)"):
        calibrate_ranges(pointwise(), [uniform(1)[..., :9, :9]], MINMAX)
    with pytest.raises(CorruptInputError, match="no ONNX model"):
        calibrate_ranges(b"hello", [uniform(1)], MINMAX)


def test_activations_that_overflow_are_refused():
    node = [
        helper.make_node("Mul", ["x", "big"], ["m"], "scale"),
        helper.make_node("Conv", ["m", "w"], ["y"], "conv"),
    ]
    model = network(node, (1, 1, 2, 2), {"w": np.ones((1, 1, 1, 1)), "big": 3e38})
    with pytest.raises(CorruptInputError, match="'m' reaches inf"):
        calibrate_ranges(model, [np.full((1, 1, 2, 2), 2, np.float32)], MINMAX)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_a_dark_first_image_costs_neither_memory_nor_time(method):
    """Bins as narrow as the first image's would be 20 million here; its order changes nothing."""
    x = uniform(5)
    x[0] *= 1e-4
    preset = Preset(method=method, percentile=99.9)
    tracemalloc.start()
    dark_first = calibrate_ranges(pointwise(), [x[:1], x[1:]], preset)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
    assert dark_first == calibrate_ranges(pointwise(), [x[1:], x[:1]], preset)
    if method == "percentile":
        # 50,000 magnitudes, one in five near zero: 99.9 % of all are 99.875 % of the others
        assert dark_first["x"] == pytest.approx(0.99875, abs=0.001)


def test_the_bins_end_at_the_largest_magnitude_of_all_images():
    """All but one of ten thousand values are 1, the last is 8: 99.99 % end in the bin of 1."""
    x = np.ones((1, 1, 100, 100), np.float32)
    x[0, 0, 5, 5] = -8
    found = calibrate_ranges(pointwise(), [x, x], Preset(method="percentile", percentile=99.98))
    assert found["x"] == pytest.approx(1, abs=8 / 2048)
    every = calibrate_ranges(pointwise(), [x, x], Preset(percentile=100.0))["x"]
    assert every == pytest.approx(8, abs=8 / 2048)


@pytest.mark.parametrize("method", METHODS)
def test_silence_has_range_zero_by_every_method(method):
    assert calibrate_ranges(pointwise(), [0 * uniform(1)], Preset(method=method)) == {"x": 0.0}
