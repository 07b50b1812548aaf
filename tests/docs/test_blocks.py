"""Blocks of YAML are recipes, and blocks of Python name what there is."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

import trt_layermerge
from benchmarks.manual.site import ROOT
from tests.docs.pages import PAGES, blocks
from trt_layermerge.pipeline.recipe import Recipe
from trt_layermerge.quantize.preset import load_preset
from trt_layermerge.session.session import Session
from trt_layermerge.session.training import training_recipe


def of(language: str) -> list[Any]:
    return [
        pytest.param(text, id=f"{page} {number}")
        for page in PAGES
        for number, text in enumerate(blocks(page, language))
    ]


def check(body: dict[str, Any]) -> None:
    """Raises what is raised where a recipe, or a part of one, cannot be used."""
    recipe = Recipe.model_validate({"model": {"name": "timm:resnet18"}, **body})
    training_recipe(recipe.finetune, seed=0, has_labels=False)
    load_preset(None, recipe.calibrate.options)


@pytest.mark.parametrize("text", of("yaml"))
def test_blocks_of_yaml_are_recipes(text: str) -> None:
    check(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"search": {"spedup": 2}}, "spedup"),
        ({"finetune": {"options": {"epoch": 2}}}, "no field epoch; did you mean epochs"),
        ({"calibrate": {"options": {"methods": "minmax"}}}, "has no 'methods'"),
    ],
)
def test_what_is_misspelt_is_noticed(body: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        check(body)


RECIPES = [*(ROOT / "engines" / "recipes").glob("*.yaml"), *ROOT.glob("examples/*/*.yaml")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_of_the_repository_are_valid(path: Path) -> None:
    check(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("text", of("python"))
def test_blocks_of_python_name_what_there_is(text: str) -> None:
    homes = {"tlm": trt_layermerge, "session": Session}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            home = homes.get(node.value.id)
            assert home is None or hasattr(home, node.attr), ast.unparse(node)
