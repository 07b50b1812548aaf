"""The trained glyph networks in int8: accuracy on ``val``, float16 fallback, engines."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.quantize.graphs import constants, glyph_images, glyphs, nodes, shipped_ranges
from trt_layermerge.core.jsonio import read_json
from trt_layermerge.errors import AccuracyGateError
from trt_layermerge.export.fp16 import to_precision
from trt_layermerge.export.runtime import logits
from trt_layermerge.quantize.choose import choose_layers
from trt_layermerge.quantize.preset import Preset
from trt_layermerge.quantize.qdq import quantizable, quantize_model
from trt_layermerge.quantize.ranges import calibrate_ranges, fixed_ranges
from trt_layermerge.quantize.sensitivity import sensitivities

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "results" / "int8.md").read_text()
NETWORKS = ("resnet20", "mobilenet_v2")
PRESET = Preset(images=128)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    return glyphs(request.param)


def ranges(model, preset=PRESET):
    train, _ = glyph_images("train")
    return calibrate_ranges(model, [train[preset.sample(len(train))]], preset)


def accuracy(outputs):
    return float((outputs.argmax(axis=1) == glyph_images("val")[1]).mean())


def default_runtime(model, images):
    """Returns the outputs of ONNX Runtime with all its optimisations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": images})[0]


def test_int8_is_within_a_point_of_float(network):
    images, labels = glyph_images("val")
    found = choose_layers(network, ranges(network), images, labels, PRESET)
    assert found.keep_float == ()
    assert found.accuracy_fp32 == accuracy(logits(network, images)) > 0.89
    assert found.accuracy_fp32 - found.accuracy_int8 <= 0.01
    assert found.agreement >= 0.98
    assert min(layer.sqnr_db for layer in found.layers) > 25  # 8 bits of a normal layer: 30 to 40
    # Sums in another order round to other steps: five images of 300 may change their class.
    assert abs(accuracy(default_runtime(found.model, images)) - found.accuracy_fp32) <= 5.1 / 300
    # The negative control: the same gate must see a network that is ruined.
    first = next(iter(found.ranges))
    wrong = {**found.ranges, first: found.ranges[first] / 64}
    assert accuracy(logits(quantize_model(network, wrong), images)) < found.accuracy_fp32 - 0.1


def test_a_crude_preset_keeps_layers_in_float_and_names_them():
    """Covering 99% of the values cuts off too much; the gate sends the worst layers back."""
    model = glyphs("mobilenet_v2")
    images, labels = glyph_images("val")
    crude = replace(PRESET, percentile=99)
    coarse = ranges(model, crude)
    found = choose_layers(model, coarse, images, labels, crude)
    assert 0 < len(found.keep_float) <= crude.max_float_layers
    assert found.accuracy_int8 >= found.accuracy_fp32 - 0.01
    everything = accuracy(logits(quantize_model(model, coarse), images))
    assert everything < found.accuracy_fp32 - 0.01
    worst = sorted(found.layers, key=lambda layer: -layer.kl)[: len(found.keep_float)]
    assert set(found.keep_float) == {layer.name for layer in worst}
    for name in found.keep_float:
        assert list(nodes(found.model)[name].input) == list(nodes(model)[name].input)


def test_a_cruder_preset_is_refused_and_the_best_is_named():
    model = glyphs("mobilenet_v2")
    images, labels = glyph_images("val")
    crude = replace(PRESET, percentile=97, max_float_layers=2)
    with pytest.raises(AccuracyGateError, match=r"at most 2 layers .*best: /blocks/.*Conv"):
        choose_layers(model, ranges(model, crude), images, labels, crude)


def test_the_float16_remainder_changes_no_scale(network):
    images, _ = glyph_images("val")
    master = quantize_model(network, ranges(network))
    half = to_precision(master, "fp16", keep_io=True)
    onnx.checker.check_model(onnx.load_from_string(half), full_check=True)
    before, after = constants(master), constants(half)
    scales = [name for name in before if name.endswith("_scale")]
    assert len(scales) > 40
    for name in scales:
        assert after[name].dtype == np.float16
        np.testing.assert_array_equal(after[name].astype(np.float32), before[name])
    for name, value in before.items():
        if value.dtype == np.int8:
            np.testing.assert_array_equal(after[name], value)
    outputs = logits(half, images)
    assert outputs.dtype == np.float32
    assert abs(accuracy(outputs) - accuracy(logits(master, images))) <= 0.01


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("fallback", ["fp32", "fp16"])
def test_tensorrt_builds_them(name, fallback):
    pytest.importorskip("tensorrt_rtx")
    from trt_layermerge.backends.tensorrt import build_engine
    from trt_layermerge.backends.tensorrt_api import load_api

    model = glyphs(name, batch=1)
    whole = to_precision(quantize_model(model, fixed_ranges(model)), fallback, keep_io=True)
    some = quantize_model(model, fixed_ranges(model), quantizable(model)[3:6])
    for int8 in (whole, to_precision(some, fallback, keep_io=True)):
        build = build_engine(int8, "int8", api=load_api("tensorrt_rtx"))
        assert build.precision == "int8"
        assert len(build.plan) > 100_000


def test_all_layers_of_a_network_are_found():
    for name, convolutions, additions in (("resnet20", 21, 9), ("mobilenet_v2", 34, 8)):
        kinds = [layer.op for layer in sensitivities(glyphs(name), *few(name), kl_images=0)]
        counts = [kinds.count(op) for op in ("Conv", "Add", "Gemm")]
        assert counts == [convolutions, additions, 1]


def table_of(name):
    path = ROOT / "calib" / "tables" / f"glyphs-{name.replace('_', '')}.json"
    return read_json(path, "calibration")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_page_says_of_val_what_the_shipped_table_says(name):
    found = table_of(name)
    worst = min(found["layers"], key=lambda layer: layer["sqnr_db"])
    row = (
        f"| default | 0 | {found['accuracy_int8']:.1%} | {found['agreement']:.1%} "
        f"| {worst['sqnr_db']:.1f} (`{worst['name']}`) | none |"
    )
    title = f"## {name} on `val` (fp32: {found['accuracy_fp32']:.1%})"
    assert found["keep_float"] == []
    assert row in PAGE[PAGE.index(title) :].splitlines()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_shipped_table_loses_less_than_a_point_on_test_as_the_page_says(name):
    """Nothing is chosen by these images. Three of 1000 may round to another class elsewhere."""
    images, labels = glyph_images("test")
    model, ranges = glyphs(name), shipped_ranges(name.replace("_", ""))
    quantised = logits(quantize_model(model, ranges, table_of(name)["keep_float"]), images)
    exact = logits(model, images)
    fp32, int8 = (float((y.argmax(1) == labels).mean()) for y in (exact, quantised))
    agreement = float((exact.argmax(1) == quantised.argmax(1)).mean())
    assert fp32 - int8 <= 0.01
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| {name} | default | 0 |")]
    told = [float(share) / 100 for share in re.findall(r"([\d.]+)%", row)]
    assert [told[0], told[1], told[4]] == pytest.approx([fp32, int8, agreement], abs=0.0031)


def few(name):
    return fixed_ranges(glyphs(name)), glyph_images("val")[0][:2]
