"""Preprocessing that comes from the network's own library, and what the recipe says instead."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trt_layermerge.errors import UsageError
from trt_layermerge.pipeline.api import open_run, remember
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.pipeline.pretrained import completed, preprocess_note
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
    untrained = completed(recipe("torchvision:efficientnet_b1"))
    assert untrained.model.input == (1, 3, 224, 224) and untrained.data.preprocess.assumed


NETS = """
import timm
import torchvision
from torch import nn


def lite():
    return timm.create_model("tf_efficientnet_lite0", num_classes=3)


def wrapped():
    return nn.Sequential(nn.Identity(), lite())


def grey():
    return timm.create_model("tf_efficientnet_lite0", num_classes=3, in_chans=1)


def told():
    net = torchvision.models.squeezenet1_1(num_classes=3)
    net.transforms = torchvision.models.EfficientNet_B1_Weights.IMAGENET1K_V2.transforms()
    return net


def named():
    net = torchvision.models.squeezenet1_1(num_classes=3)
    net.weights = torchvision.models.EfficientNet_B1_Weights.IMAGENET1K_V2
    return net


def silent():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())


def broken():
    raise RuntimeError("out of order")
"""


@pytest.fixture
def factories(tmp_path: Path) -> str:
    (tmp_path / "factories.py").write_text(NETS)
    return str(tmp_path / "factories.py")


@pytest.mark.parametrize("factory", ["lite", "wrapped"])
def test_a_factorys_network_is_asked(factories: str, factory: str) -> None:
    """What timm writes into a network: 224 x 224, mean and deviation one half, bicubic."""
    pytest.importorskip("timm")
    found = completed(recipe(f"{factories}:{factory}"))
    assert found.data.preprocess.mean == found.data.preprocess.std == (0.5, 0.5, 0.5)
    assert found.data.preprocess.interpolation == "bicubic"
    assert not found.data.preprocess.assumed
    small = recipe(f"{factories}:{factory}", **{"model.input": [1, 3, 64, 64]})
    assert completed(small).model.input == (1, 3, 64, 64)


@pytest.mark.parametrize("factory", ["told", "named"])
def test_torchvisions_transforms_of_a_factorys_network(factories: str, factory: str) -> None:
    found = completed(recipe(f"{factories}:{factory}"))
    assert found.model.input == (1, 3, 240, 240)
    assert found.data.preprocess.mean == (0.485, 0.456, 0.406)
    assert not found.data.preprocess.assumed and preprocess_note(found) is None


def test_a_recipe_that_says_all_of_it_makes_no_network(factories: str) -> None:
    normal = {"data.preprocess.mean": [0.5] * 3, "data.preprocess.std": [0.25] * 3}
    asked = recipe(f"{factories}:broken", **normal)
    assert completed(asked) == asked
    with pytest.raises(UsageError, match="out of order"):
        completed(recipe(f"{factories}:broken"))


def test_what_is_assumed_is_told(factories: str) -> None:
    for name in ("timm:no_such_net", "torchvision:resnet18", "net.onnx", f"{factories}:silent"):
        found = completed(recipe(name))
        assert found.data.preprocess.mean == (0.485, 0.456, 0.406)
        note = preprocess_note(found)
        assert note is not None and "ImageNet's mean [0.485, 0.456, 0.406]" in note
        assert "set data.preprocess.mean" in note
        half = completed(recipe(name, **{"data.preprocess.mean": [0.1, 0.2, 0.3]}))
        assert half.data.preprocess.mean == (0.1, 0.2, 0.3)
        assert preprocess_note(half) is not None  # std is assumed
        full = {"data.preprocess.mean": [0.1] * 3, "data.preprocess.std": [0.2] * 3}
        assert preprocess_note(completed(recipe(name, **full))) is None


def test_without_timm_the_defaults_are_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    found = completed(recipe("timm:tf_efficientnet_lite1"))
    assert found.data.preprocess.std == (0.229, 0.224, 0.225)
    assert preprocess_note(found) is not None


def test_values_that_are_typed_later_are_not_assumed(tmp_path: Path, factories: str) -> None:
    """The run remembers that it assumed; what is typed beside it is the user's own."""
    options = RunOptions("r", tmp_path, overrides={"model.name": f"{factories}:silent"})
    run = open_run(None, options, NullReporter())
    assert run.recipe.data.preprocess.assumed
    remember(run)
    again = RunOptions("r", tmp_path)
    assert open_run(None, again, NullReporter()).recipe.data.preprocess.assumed
    typed = {"data.preprocess.mean": [0.5] * 3, "data.preprocess.std": [0.5] * 3}
    told = RunOptions("r", tmp_path, overrides=typed)
    assert not open_run(None, told, NullReporter()).recipe.data.preprocess.assumed


def test_a_run_remembers_what_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    options = RunOptions("r", tmp_path, overrides={"model.name": "timm:tf_efficientnet_lite1"})
    run = open_run(None, options, NullReporter())
    remember(run)
    first = run.recipe
    remembered = load_recipe(tmp_path / "r" / "recipe.yaml", {})
    assert remembered.data.preprocess == first.data.preprocess
    assert remembered.data.preprocess.crop_pct == 0.882
    monkeypatch.setitem(sys.modules, "timm", None)  # it need not be asked again
    assert open_run(None, RunOptions("r", tmp_path), NullReporter()).recipe == first
