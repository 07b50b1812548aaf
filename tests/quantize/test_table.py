"""The table and the float model give the int8 model again, bit by bit."""

import json

import pytest

from tests.quantize.graphs import RESIDUAL_RANGES, images, residual, run, shipped_ranges
from trt_layermerge.core.jsonio import sha256_bytes
from trt_layermerge.quantize.choose import choose_layers
from trt_layermerge.quantize.preset import Preset
from trt_layermerge.quantize.qdq import quantize_model, scale_of

PRESET = Preset(keep_float=("first",))


@pytest.fixture(scope="module")
def made():
    x = images(20)
    labels = run(residual(), x)[0].argmax(axis=1)
    return choose_layers(residual(), {**RESIDUAL_RANGES, "r1": 18 / 7}, x, labels, PRESET)


@pytest.fixture
def body(made):
    return json.loads(json.dumps(made.to_json(residual(), PRESET)))


def test_the_file_rebuilds_the_model(made, body):
    ranges = {name: tensor["magnitude"] for name, tensor in body["tensors"].items()}
    assert quantize_model(residual(), ranges, body["keep_float"]) == made.model


def test_what_stands_in_the_file(made, body):
    assert body["tensors"]["r1"] == {"magnitude": 18 / 7, "scale": scale_of(18 / 7)}
    assert body["keep_float"] == list(made.keep_float)
    assert body["preset"] == PRESET.to_json()
    assert body["model_sha256"] == sha256_bytes(residual())
    assert [layer["name"] for layer in body["layers"]] == ["first", "depth", "sum", "head"]
    assert body["accuracy_fp32"] == 1.0


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2"])
def test_the_shipped_tables_can_be_read(name):
    assert shipped_ranges(name)["input"] == pytest.approx(2.0, rel=0.01)  # what preprocessing gives
