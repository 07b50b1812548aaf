"""Every recipe in ``engines/recipes`` loads, says what its name says, and finds its files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trt_layermerge.pipeline.recipe import Recipe, load_recipe

ENGINES = Path(__file__).parents[2] / "engines"
RECIPES = sorted((ENGINES / "recipes").glob("*.yaml"))
TARGETS = {"cpu", "jetson-orin-nano", "jetson-agx-orin", "jetson-thor", "rtx"}


def named(path: Path) -> tuple[str, str]:
    """Returns model and target of a recipe's name."""
    target = next(t for t in sorted(TARGETS) if path.stem.endswith(f"-{t}"))
    return path.stem.removesuffix(f"-{target}"), target


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def files(recipe: Recipe) -> list[Path]:
    data = recipe.data
    sources = [s.removeprefix("npz:") for s in (data.train, data.val, data.test) if s]
    preset = [recipe.calibrate.preset] if recipe.calibrate.preset else []
    code = recipe.model.name.rpartition(":")[0]
    return [Path(name) for name in (code, recipe.model.weights or "", *sources, *preset)]


def test_every_target_has_a_recipe() -> None:
    assert {named(path)[1] for path in RECIPES} == TARGETS


def test_it_loads_and_its_files_are_there(path: Path) -> None:
    recipe = load_recipe(path, {})
    assert [file for file in files(recipe) if not file.is_file()] == []


def test_it_is_for_the_target_of_its_name(path: Path) -> None:
    recipe, target = load_recipe(path, {}), named(path)[1]
    assert (recipe.measure.backend == "onnxruntime") == (target == "cpu")
    assert recipe.measure.precision == ("fp32" if target == "cpu" else "fp16")
    assert recipe.verify.never_slower
    if target != "cpu":
        assert recipe.build.engine == "tensorrt"
        assert {"fp16", "int8"} <= set(recipe.build.precisions)


def test_recipes_of_one_model_differ_in_their_target_only(path: Path) -> None:
    ours = load_recipe(path, {})
    theirs = load_recipe(path.with_name(f"{named(path)[0]}-cpu.yaml"), {})
    assert (ours.model, ours.data, ours.finetune) == (theirs.model, theirs.data, theirs.finetune)


def test_what_was_never_run_says_so(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ("Nobody has run this" in text) == (named(path)[1] != "cpu")
    recipe = load_recipe(path, {})
    for section, key in re.findall(r"--set (\w+)\.(\w+)=", text):
        assert key in type(getattr(recipe, section)).model_fields
    assert max(map(len, text.splitlines())) <= 120


def test_the_overview_lists_every_recipe_and_nothing_else() -> None:
    text = (ENGINES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(recipes/([\w-]+\.yaml)\)", text)) == {p.name for p in RECIPES}


def test_the_precisions_of_the_overview_are_those_of_the_recipes() -> None:
    lines = (ENGINES / "README.md").read_text(encoding="utf-8").splitlines()
    for line in lines:
        for name in re.findall(r"\(recipes/([\w-]+\.yaml)\)", line):
            if named(Path(name))[1] != "cpu":
                recipe = load_recipe(ENGINES / "recipes" / name, {})
                assert ", ".join(recipe.build.precisions) in line
