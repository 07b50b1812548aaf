"""Preprocessing that comes from the network's own library, and what the recipe says instead."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trt_layermerge.pipeline.api import open_run
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.pipeline.pretrained import completed
from trt_layermerge.pipeline.recipe import Recipe, load_recipe


def recipe(name: str, **overrides: object) -> Recipe:
    return load_recipe(None, {"model.name": name, **overrides})


def test_timms_networks_bring_their_preprocessing() -> None:
    pytest.importorskip("timm")
    found = completed(recipe("timm:tf_efficientnet_lite1"))
    # timm's table: 240 x 240, 0.882, bicubic, mean and deviation one half.
    assert found.model.input == (1, 3, 240, 240)
    assert found.data.preprocess.mean == found.data.preprocess.std == (0.5, 0.5, 0.5)
    assert (found.data.preprocess.crop_pct, found.data.preprocess.interpolation) == (
        0.882,
        "bicubic",
    )


def test_the_recipe_has_the_last_word() -> None:
    pytest.importorskip("timm")
    asked = recipe(
        "timm:tf_efficientnet_lite1",
        **{"model.input": [1, 3, 64, 64], "data.preprocess.mean": [0.1, 0.2, 0.3]},
    )
    found = completed(asked)
    assert found.model.input == (1, 3, 64, 64)
    assert found.data.preprocess.mean == (0.1, 0.2, 0.3)
    assert found.data.preprocess.std == (0.5, 0.5, 0.5)
    assert completed(found) == found


def test_torchvisions_weights_bring_theirs() -> None:
    pytest.importorskip("torchvision")
    found = completed(recipe("torchvision:efficientnet_b1", **{"model.weights": "pretrained"}))
    # IMAGENET1K_V2 of efficientnet_b1: 240 of 255, bilinear.
    assert found.model.input == (1, 3, 240, 240)
    assert found.data.preprocess.crop_pct == pytest.approx(240 / 255)
    assert found.data.preprocess.interpolation == "bilinear"
    untrained = recipe("torchvision:efficientnet_b1")
    assert completed(untrained) == untrained


@pytest.mark.parametrize("name", ["timm:no_such_net", "torchvision:no_such_net", "net.py:build"])
def test_other_networks_say_nothing(name: str) -> None:
    asked = recipe(name, **{"model.weights": "pretrained"})
    assert completed(asked).data == asked.data
    assert completed(asked).model == asked.model


def test_without_timm_the_defaults_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    asked = recipe("timm:tf_efficientnet_lite1")
    assert completed(asked).data.preprocess == asked.data.preprocess


def test_a_run_remembers_what_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    options = RunOptions("r", tmp_path, overrides={"model.name": "timm:tf_efficientnet_lite1"})
    first = open_run(None, options, NullReporter()).recipe
    remembered = load_recipe(tmp_path / "r" / "recipe.yaml", {})
    assert remembered.data.preprocess == first.data.preprocess
    assert remembered.data.preprocess.crop_pct == 0.882
    monkeypatch.setitem(sys.modules, "timm", None)  # it need not be asked again
    assert open_run(None, RunOptions("r", tmp_path), NullReporter()).recipe == first
