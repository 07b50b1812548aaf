"""Recipes: read, overridden, remembered, refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from trt_layermerge.errors import CorruptInputError, UsageError
from trt_layermerge.pipeline.recipe import dump_recipe, load_recipe, remembered


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "model: {name: 'nets.py:small', weights: w.safetensors}\n"
        "data: {train: 'npz:d/train.npz', val: 'imagefolder:v', test: 'sets.py:test'}\n",
    )
    recipe = load_recipe(path, {})
    assert recipe.model.name == f"{tmp_path}/nets.py:small"
    assert recipe.model.weights == f"{tmp_path}/w.safetensors"
    assert recipe.data.train == f"npz:{tmp_path}/d/train.npz"
    assert recipe.data.val == f"imagefolder:{tmp_path}/v"
    assert recipe.data.test == f"{tmp_path}/sets.py:test"


def test_names_of_libraries_are_no_paths(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {name: 'timm:resnet18', weights: pretrained}")
    recipe = load_recipe(path, {})
    assert (recipe.model.name, recipe.model.weights) == ("timm:resnet18", "pretrained")


def test_overrides_win_and_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "model: {name: 'timm:resnet18'}\nsearch: {speedup: 2.0, loops: 3}")
    monkeypatch.chdir("/")
    recipe = load_recipe(path, {"search.speedup": 1.25, "model.weights": "w.safetensors"})
    assert recipe.search.speedup == 1.25 and recipe.search.loops == 3
    assert recipe.model.weights == "/w.safetensors"


def test_int8_is_asked_for_by_either_precision(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {name: 'timm:resnet18'}\ncalibrate: {preset: few.yaml}")
    recipe = load_recipe(path, {})
    assert not recipe.int8
    assert recipe.calibrate.preset == f"{tmp_path}/few.yaml"
    assert load_recipe(path, {"measure.precision": "int8"}).int8
    assert load_recipe(path, {"build.precisions": ["fp16", "int8"]}).int8


def test_a_key_with_a_plus_adds_to_a_list(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {name: 'timm:resnet18'}\nbuild: {precisions: [fp16]}")
    for value in ("int8", ["int8"], ["fp16", "int8"]):
        recipe = load_recipe(path, {"build.precisions+": value})
        assert recipe.build.precisions == ("fp16", "int8")
    added = load_recipe(None, {"model.name": "a", "build.precisions+": "int8"})
    assert added.build.precisions == ("fp32", "fp16", "int8")
    for key in ("build.engine+", "build.nothing+"):
        with pytest.raises(UsageError, match=f"{key[:-1]} is no list"):
            load_recipe(path, {key: "x"})
    with pytest.raises(UsageError, match=r"build\.precisions\.1"):
        load_recipe(path, {"build.precisions+": "int4"})


def test_asking_for_a_speedup_forgets_a_remembered_budget(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {name: 'timm:resnet18'}\nsearch: {budget_ms: 3.0}")
    assert load_recipe(path, {}).search.budget_ms == 3.0
    assert load_recipe(path, {"search.speedup": 1.25}).search.budget_ms is None


def test_a_recipe_survives_being_remembered(tmp_path: Path) -> None:
    path = write(
        tmp_path, "model: {name: 'nets.py:small'}\nfinetune: {options: {lr: 0.1}}\nseed: 7"
    )
    recipe = load_recipe(path, {})
    elsewhere = tmp_path / "runs"
    elsewhere.mkdir()
    assert load_recipe(write(elsewhere, dump_recipe(recipe)), {}) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {}", r"model\.name: field required"),
        ("model: {name: a}\nsearch: {speedup: 0.5}", r"search\.speedup: .*greater than 1"),
        ("model: {name: a}\nserach: {speedup: 2}", r"serach: there is no .* mean search\?"),
        ("model: {name: a}\nsearch: {spedup: 2}", r"did you mean search\.speedup"),
        ("model: {name: a}\nfinalists: 2", r"did you mean search\.finalists\?"),
        ("model: {name: a}\nzzzz: 2", r"zzzz: there is no such key$"),
        ("model: {name: a, input: [1, 3, 224]}", r"model\.input"),
        ("model: {name: a}\nmeasure: {precision: fp4}", r"measure\.precision"),
        ("model: {name: a}\nimportance: {fit_images: 0}", r"importance\.fit_images"),
        (
            "model: {name: a}\nmeasure: {precision: fp8}",
            r"measure\.precision: fp8 needs .* 8\.9 .* choose int8",
        ),
        (
            "model: {name: a}\nbuild: {precisions: [int8, bf16]}",
            r"build\.precisions\.1: bf16 needs .* 8\.0 .* choose fp16",
        ),
        (
            "model: {name: a}\nmeasure: {batch: 4}\nbuild: {max_batch: 2}",
            r"used: build\.max_batch is 2, less than the measured batch of 4",
        ),
        ("model: {name: a}\nbuild: {options: {optimization_level: 6}}", r"optimization_level: "),
    ],
)
def test_refuses_values_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_recipe(write(tmp_path, text), {})


def test_who_made_a_mistake_is_blamed(tmp_path: Path) -> None:
    good = write(tmp_path, "model: {name: a}\nsearch: {finalists: 3}")
    with pytest.raises(UsageError, match=r"^the options cannot be used: search\.speedup: "):
        load_recipe(good, {"search.speedup": 0.5})
    bad = write(tmp_path, "model: {name: a}\nsearch: {finalists: 0}")
    with pytest.raises(UsageError, match=r"^the recipe .*yaml cannot be used: search\.finalists"):
        load_recipe(bad, {"search.speedup": 2.0})
    both = r"the recipe .*: search\.finalists: .*, and the options cannot be used: seed: "
    with pytest.raises(UsageError, match=both):
        load_recipe(bad, {"seed": -1})


@pytest.mark.parametrize("text", ["model: {name: [", "- a\n- b", "\x00"])
def test_refuses_what_is_no_recipe(tmp_path: Path, text: str) -> None:
    with pytest.raises(CorruptInputError, match=r"recipe\.yaml"):
        load_recipe(write(tmp_path, text), {})


def test_refuses_a_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no recipe"):
        load_recipe(tmp_path / "none.yaml", {})


def test_yaml_cannot_construct_objects(tmp_path: Path) -> None:
    text = "model: {name: !!python/object/apply:os.system ['true']}"
    with pytest.raises(CorruptInputError):
        load_recipe(write(tmp_path, text), {})


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1e3", "-.5e1", "1.", "+1.5e+2"])
def test_numbers_with_exponents_are_numbers(tmp_path: Path, text: str) -> None:
    body = f"model: {{name: 'timm:x'}}\nfinetune: {{options: {{lr: {text}}}}}\n"
    assert load_recipe(write(tmp_path, body), {}).finetune.options["lr"] == float(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {name: 'timm:x'}\nseed: 1\nseed: 2\n", "'seed' stands there twice"),
        ("model: {name: 'timm:x'}\nverify: {}\nmodel: {name: 'timm:y'}\n", "'model' stands"),
        ("model: {name: 'timm:x', name: 'timm:y'}\n", "'name' stands there twice"),
        ("a: &a [*a]\n", "aliases"),
        ("a: &a {x: 1}\nmodel: {<<: *a}\n", "aliases"),
        ("seed: 2001-99-99\n", "month must be"),
        ("? [1, 2]\n: 3\n", "unhashable|no text"),
        ("1: 2\n", "1 is no text"),
        ("seed: !!timestamp x\n", "not valid YAML"),
        ("seed: !!binary '*'\n", "seed: input should be"),
        ("seed: " + "[" * 5000 + "\n", "recursion|deep|expected"),
    ],
)
def test_odd_yaml_is_refused_in_one_paragraph(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises((CorruptInputError, UsageError), match=words):
        load_recipe(write(tmp_path, text), {})


def test_a_remembered_recipe_is_the_whole_of_what_was_written(tmp_path: Path) -> None:
    written = load_recipe(write(tmp_path, "model: {name: 'timm:resnet18'}\nseed: 7\n"), {})
    path = tmp_path / "r" / "recipe.yaml"
    path.parent.mkdir()
    content = remembered(written).encode()
    path.write_bytes(content)
    assert load_recipe(path, {}, remembered=True) == written
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises((CorruptInputError, UsageError)):
            load_recipe(path, {}, remembered=True)
    path.write_bytes(content.replace(b"seed: 7", b"seed: 9"))
    with pytest.raises(CorruptInputError, match=r"changed by hand; .* delete its first line"):
        load_recipe(path, {}, remembered=True)
    assert load_recipe(path, {}).seed == 9  # a copy is anybody's
    path.write_bytes(content.partition(b"\n")[2])  # of an older version
    assert load_recipe(path, {}, remembered=True) == written
