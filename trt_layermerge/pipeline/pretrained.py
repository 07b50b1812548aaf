"""How a network was trained to see images, where a recipe does not say it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from trt_layermerge.core.preprocess import IMAGENET_MEAN, IMAGENET_STD, for_channels
from trt_layermerge.models.pretrained import pretrained_data_config
from trt_layermerge.pipeline.recipe import Recipe

NORMALISATION = {"mean", "std"}


def completed(recipe: Recipe) -> Recipe:
    """Returns the recipe with the input and preprocessing of the named network filled in.

    Whatever the recipe says itself stays. Where neither it nor the network tells how images were
    normalised, ImageNet's way is assumed, and the recipe says so (``data.preprocess.assumed``).

    Raises:
        LayerMergeError: As ``load_network``, of a factory whose network is asked.
    """
    given = recipe.data.preprocess.model_fields_set
    if given >= {*NORMALISATION, "crop_pct", "interpolation"}:
        return recipe  # without importing anything
    name, weights = recipe.model.name, recipe.model.weights
    config = pretrained_data_config(name, weights, ask_factory=not given >= NORMALISATION)
    found: dict[str, Any] = {} if config is None else asdict(config)
    preprocess = {key: value for key, value in found.items() if value is not None}
    body = recipe.model_dump(exclude_unset=True)
    if config is not None:
        body["model"] = {"input": preprocess.pop("shape"), **body["model"]}
    elif not given >= NORMALISATION:
        preprocess = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "assumed": True}
    channels = body["model"].get("input", recipe.model.input)[1]
    for key in NORMALISATION & preprocess.keys():
        preprocess[key] = for_channels(preprocess[key], channels)
    data = body.get("data", {})
    body["data"] = {**data, "preprocess": {**preprocess, **data.get("preprocess", {})}}
    return Recipe.model_validate(body)


def preprocess_note(recipe: Recipe) -> str | None:
    """Returns what a user must hear of the preprocessing, or None."""
    preprocess = recipe.data.preprocess
    if not preprocess.assumed:
        return None
    mean, std = ([round(v, 3) for v in values] for values in (preprocess.mean, preprocess.std))
    return (
        f"nothing says how images were normalised for {recipe.model.name}: ImageNet's mean {mean} "
        f"and std {std} are assumed; set data.preprocess.mean and std to what it was trained with"
    )
