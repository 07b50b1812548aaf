"""How the network of a zoo was trained to see images, where a recipe does not say it."""

from __future__ import annotations

import importlib
from typing import Any

from trt_layermerge.pipeline.recipe import Recipe
from trt_layermerge.pipeline.sections import PRETRAINED

METHODS = ("nearest", "bilinear", "bicubic", "lanczos")


def completed(recipe: Recipe) -> Recipe:
    """Returns the recipe with the input and preprocessing of the named network filled in.

    They come from timm's ``pretrained_cfg`` for ``timm:NAME``, and for ``torchvision:NAME`` with
    pretrained weights from the transforms of these. Whatever the recipe says itself stays, and a
    library that is not installed says nothing.
    """
    library, _, name = recipe.model.name.partition(":")
    wanted = {"mean", "std", "crop_pct", "interpolation"}
    if wanted <= recipe.data.preprocess.model_fields_set:
        return recipe  # without importing anything
    if library == "timm":
        own = _timm(name)
    elif library == "torchvision" and recipe.model.weights == PRETRAINED:
        own = _torchvision(name)
    else:
        return recipe
    body = recipe.model_dump(exclude_unset=True)
    body["data"] = dict(body.get("data", {}))
    model, preprocess = own.pop("model", {}), own
    body["model"] = {**model, **body["model"]}
    body["data"]["preprocess"] = {**preprocess, **body["data"].get("preprocess", {})}
    return Recipe.model_validate(body)


def _timm(name: str) -> dict[str, Any]:
    """Returns what timm knows of a network, as values of a recipe; nothing of an unknown one."""
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        return {}
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None:
        return {}
    found = timm.data.resolve_data_config({}, pretrained_cfg=config.to_dict())
    if found.get("crop_mode", "center") != "center":
        return {}  # squashed or padded images, which are not made here
    return {
        "model": {"input": (1, *found["input_size"])},
        **_values(found["mean"], found["std"], found["crop_pct"], found["interpolation"]),
    }


def _torchvision(name: str) -> dict[str, Any]:
    """Returns what the default weights of torchvision say; nothing where they cannot be asked."""
    try:
        models = importlib.import_module("torchvision.models")
        weights = models.get_model_weights(name).DEFAULT
    except (ImportError, ValueError, AttributeError):
        return {}
    found = weights.transforms()
    if not hasattr(found, "crop_size"):
        return {}  # not a classifier
    crop, whole = found.crop_size[0], found.resize_size[0]
    return {
        "model": {"input": (1, 3, crop, crop)},
        **_values(found.mean, found.std, crop / whole, found.interpolation.value),
    }


def _values(mean: Any, std: Any, crop_pct: float, interpolation: str) -> dict[str, Any]:
    method = {"interpolation": interpolation} if interpolation in METHODS else {}
    return {"mean": tuple(mean), "std": tuple(std), "crop_pct": crop_pct, **method}
