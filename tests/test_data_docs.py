"""``docs/data.md``: the names, the recipe and the command that it shows are understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml

from trt_layermerge.core.outputs import Kind, Task
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.data import holdout
from trt_layermerge.data.augment import BATCH_KINDS, IMAGE_KINDS, parse_augment
from trt_layermerge.data.lists import read_list
from trt_layermerge.data.names import FORMS, parse_name
from trt_layermerge.data.sources import ArrayData
from trt_layermerge.errors import UsageError
from trt_layermerge.pipeline.recipe import load_recipe

TEXT = (Path(__file__).parents[1] / "docs" / "data.md").read_text()


def test_every_form_is_in_the_table_and_parses() -> None:
    named = re.findall(r"^\| `([^`]+)` \|", TEXT, re.M)
    forms = re.split(r", | or ", FORMS)
    # The option of hf may be left out, and FILE.py stands for any Python file.
    assert {n.replace("FILE.py", "F.py") for n in named} == {
        n.replace("FILE.py", "F.py") for n in forms
    }
    assert [str(parse_name(name)) for name in named] == named
    with pytest.raises(UsageError):
        parse_name("webdataset:shards.tar")


def test_the_recipe_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"model": {"name": "net.onnx"}, **yaml.safe_load(block)}))
    recipe = load_recipe(path, {})
    assert recipe.data.train is not None and recipe.data.val is not None
    assert parse_name(recipe.data.train).without == parse_name(recipe.data.val).listed


def test_the_command_writes_what_is_promised(tmp_path: Path) -> None:
    (line,) = re.findall(r"^python -m trt_layermerge\.data\.holdout (.*)$", TEXT, re.M)
    words = shlex.split(line)
    for name in ("ant", "bee"):
        (tmp_path / words[0] / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / words[0] / name / f"{i}.jpg").write_bytes(f"{name}{i}".encode())
    words[0] = str(tmp_path / words[0])
    words[words.index("--images") + 1] = "2"
    out = words.index("--out") + 1
    words[out] = str(tmp_path / words[out])
    assert holdout.main(words) == 0
    for part in holdout.PARTS:
        name = f"{Path(words[out]).name}-{part}.txt"
        assert name in TEXT
        assert len(read_list(Path(words[out]).with_name(name)).images) == 2


def test_augmentations_that_are_named_exist() -> None:
    section = TEXT.partition("### Augmentation")[2].partition("###")[0]
    named = re.findall(r"`((?:[a-z]+:[\d.]+)|flip)`", section)
    assert len(named) >= 8
    data = ArrayData(torch.zeros(1, 3, 8, 8).byte(), None, (), Preprocess())
    assert parse_augment(named, data) is not None
    assert {name.partition(":")[0] for name in named} == {*BATCH_KINDS, *IMAGE_KINDS}


OUTPUTS = (Path(__file__).parents[1] / "docs" / "outputs.md").read_text()


def test_every_kind_of_output_is_in_its_table() -> None:
    assert re.findall(r"^\| `([a-z]+)` \|", OUTPUTS, re.M) == list(get_args(Kind))
    tasks = set(get_args(Task)) - {"auto"}
    assert tasks <= set(re.findall(r"[a-z]+", OUTPUTS))


def test_the_recipe_of_several_inputs_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", OUTPUTS, re.S)
    (tmp_path / "recipe.yaml").write_text(block)
    first, *more = load_recipe(tmp_path / "recipe.yaml", {}).model.example(2)
    assert first.shape == (2, 3, 224, 224)
    assert [(tuple(x.shape), x.dtype) for x in more] == [
        ((2, 8), torch.float32),
        ((2,), torch.int64),
    ]
