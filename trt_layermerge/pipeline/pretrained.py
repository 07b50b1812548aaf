"""How the network of a library was trained to see images, where a recipe does not say it."""

from __future__ import annotations

from dataclasses import asdict

from trt_layermerge.models.pretrained import pretrained_data_config
from trt_layermerge.pipeline.recipe import Recipe


def completed(recipe: Recipe) -> Recipe:
    """Returns the recipe with the input and preprocessing of the named network filled in.

    Whatever the recipe says itself stays.
    """
    wanted = {"mean", "std", "crop_pct", "interpolation"}
    if wanted <= recipe.data.preprocess.model_fields_set:
        return recipe  # without importing anything
    config = pretrained_data_config(recipe.model.name, recipe.model.weights)
    if config is None:
        return recipe
    preprocess = {key: value for key, value in asdict(config).items() if value is not None}
    body = recipe.model_dump(exclude_unset=True)
    body["model"] = {"input": preprocess.pop("shape"), **body["model"]}
    data = body.get("data", {})
    body["data"] = {**data, "preprocess": {**preprocess, **data.get("preprocess", {})}}
    return Recipe.model_validate(body)
