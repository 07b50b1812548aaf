"""Presets: the shipped ones, what they refuse, and which images they draw."""

from pathlib import Path

import numpy as np
import pytest

from trt_layermerge.errors import CorruptInputError, UsageError
from trt_layermerge.quantize.preset import METHODS, Preset, load_preset

PRESETS = Path(__file__).parents[2] / "calib" / "presets"


def test_the_default_file_is_the_default():
    assert load_preset(PRESETS / "default.yaml", {}) == load_preset(None, {}) == Preset()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_file(method):
    assert load_preset(PRESETS / f"{method}.yaml", {}).method == method


def test_overrides_win():
    preset = load_preset(PRESETS / "entropy.yaml", {"images": 7, "keep_float": ["a", "b"]})
    assert (preset.method, preset.images, preset.keep_float) == ("entropy", 7, ("a", "b"))
    assert load_preset(None, preset.to_json()) == preset


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"methode": "minmax"}, r"no 'methode'; it has method, percentile"),
        ({"method": "best"}, "method .* one of minmax, entropy, percentile, not 'best'"),
        ({"percentile": 0.9999}, "percentile .* from 50 to 100"),
        ({"images": 0}, "images .* at least 1"),
        ({"images": True}, "images"),
        ({"seed": 1.5}, "seed"),
        ({"max_accuracy_drop": 1.5}, "share from 0 to 1, such as 0.01"),
        ({"max_accuracy_drop": float("nan")}, "max_accuracy_drop"),
        ({"max_float_layers": -1}, "max_float_layers"),
        ({"keep_float": "conv1"}, "keep_float .* list"),
    ],
)
def test_what_is_no_preset_is_refused(overrides, words):
    with pytest.raises(UsageError, match=words):
        load_preset(None, overrides)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"calib/presets/default\.yaml"):
        load_preset(tmp_path / "none.yaml", {})
    for text in ("- a list", "a: [", ""):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(CorruptInputError, match=r"bad\.yaml"):
            load_preset(path, {})


def test_images_are_drawn_by_the_seed():
    first, again, other = (Preset(images=20, seed=s).sample(100) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(set(first)) == 20 and set(first) <= set(range(100))
    assert (np.diff(first) > 0).all()
    assert set(first) != set(other)
    np.testing.assert_array_equal(Preset(images=200).sample(5), np.arange(5))
