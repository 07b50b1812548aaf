"""The table and the float model give the int8 model again, bit by bit."""

from pathlib import Path

import pytest

from tests.quantize.graphs import RESIDUAL_RANGES, images, residual, run
from trt_layermerge.core.jsonio import read_json, sha256_bytes, write_json
from trt_layermerge.errors import CorruptInputError
from trt_layermerge.quantize.choose import choose_layers
from trt_layermerge.quantize.preset import Preset
from trt_layermerge.quantize.qdq import quantize_model, scale_of
from trt_layermerge.quantize.table import KIND, CalibrationTable, load_table

TABLES = Path(__file__).parents[2] / "calib" / "tables"
PRESET = Preset(keep_float=("first",))


@pytest.fixture(scope="module")
def made():
    x = images(20)
    labels = run(residual(), x)[0].argmax(axis=1)
    return choose_layers(residual(), {**RESIDUAL_RANGES, "r1": 18 / 7}, x, labels, PRESET)


@pytest.fixture
def path(made, tmp_path):
    table = CalibrationTable.of(residual(), PRESET, made)
    write_json(tmp_path / "calibration.json", KIND, table.to_json())
    return tmp_path / "calibration.json"


def test_the_file_rebuilds_the_model(made, path):
    table = load_table(path)
    assert quantize_model(residual(), table.ranges, table.keep_float) == made.model
    assert table == CalibrationTable.of(residual(), PRESET, made)


def test_what_stands_in_the_file(made, path):
    body = read_json(path, "calibration")
    assert body["tensors"]["r1"] == {"magnitude": 18 / 7, "scale": scale_of(18 / 7)}
    assert body["keep_float"] == list(made.keep_float)
    assert body["preset"] == PRESET.to_json()
    assert body["model_sha256"] == sha256_bytes(residual())
    assert [layer["name"] for layer in body["layers"]] == ["first", "depth", "sum", "head"]
    assert body["accuracy_fp32"] == 1.0


@pytest.mark.parametrize("magnitude", [-1, float("nan"), "much", None])
def test_damage_is_refused(path, magnitude):
    body = read_json(path, "calibration")
    body.pop("schema")
    body["tensors"]["r1"]["magnitude"] = magnitude
    write_json(path, "calibration", body)
    with pytest.raises(CorruptInputError, match=r"calibration\.json is damaged"):
        load_table(path)


def test_missing_fields_are_refused(path):
    for field in ("model_sha256", "preset", "tensors", "keep_float"):
        body = read_json(path, "calibration")
        body.pop("schema")
        body.pop(field)
        write_json(path.with_name("less.json"), "calibration", body)
        with pytest.raises(CorruptInputError, match=r"less\.json is damaged"):
            load_table(path.with_name("less.json"))


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2"])
def test_the_shipped_tables_can_be_read(name):
    table = load_table(TABLES / f"glyphs-{name}.json")
    assert table.ranges["input"] == pytest.approx(2.0, rel=0.01)  # what preprocessing gives
