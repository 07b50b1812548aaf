"""What a run notices of its data: other files, changed files, lists that overlap."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.pipeline import tiny
from trt_layermerge.data import holdout
from trt_layermerge.errors import UsageError
from trt_layermerge.pipeline.api import open_run
from trt_layermerge.pipeline.data_files import data_inputs, refuse_overlaps, same_files
from trt_layermerge.pipeline.options import RunOptions
from trt_layermerge.pipeline.recipe import load_recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images, labels = tiny.stripes(80, seed=0)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "d" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "d" / str(label) / f"{i:03}.png")
    assert holdout.main([str(tmp_path / "d"), "--images", "20", "--out", f"{tmp_path}/h"]) == 0
    return tmp_path / "d"


def lists(folder: Path) -> list[str]:
    return [f"imagefolder:{folder}?list={folder.parent}/h-{part}.txt" for part in holdout.PARTS]


def test_a_test_folder_without_a_class_is_numbered_as_train(folder: Path) -> None:
    """Without ``0`` a folder would call ``1`` 0, and both networks would be right nowhere."""
    recipe = tiny.write_project(folder.parent / "project")
    test = folder.parent / "test"
    shutil.copytree(folder, test)
    shutil.rmtree(test / "0")
    for name in ("1", "2", "3"):
        (test / name).rename(test / f"class {name}")
    for name in ("0", "1", "2", "3"):
        (folder / name).rename(folder / f"class {name}")
    names = {"data.train": f"imagefolder:{folder}", "data.test": f"imagefolder:{test}"}
    run = open_run(
        recipe, RunOptions("x", folder.parent / "runs", overrides=names), tiny.Recorder()
    )
    data = run.data("test")
    assert data is not None and data.class_names == run.train.class_names
    _, labels = data.batch(torch.arange(len(data)))
    assert labels is not None and set(labels.tolist()) == {1, 2, 3}
    (test / "class 1").rename(test / "another")
    run = open_run(
        recipe, RunOptions("x", folder.parent / "runs", overrides=names), tiny.Recorder()
    )
    with pytest.raises(UsageError, match="the classes another are none of the 4 that"):
        run.data("test")


def test_an_overwritten_image_of_the_same_size_is_noticed(folder: Path) -> None:
    source, file = f"imagefolder:{folder}", folder / "0" / "000.png"
    before = data_inputs(source)
    assert data_inputs(source) == before
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    after = data_inputs(source)
    assert after != before and after["sizes"] == before["sizes"]
    (folder / "notes.txt").write_text("not an image")
    assert data_inputs(source) == after


def test_a_changed_list_is_other_data(folder: Path) -> None:
    source = lists(folder)[0]
    without = source.replace("?list", "?without")
    before = data_inputs(source), data_inputs(without)
    path = Path(source.partition("=")[2])
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    assert data_inputs(source) != before[0] and data_inputs(without) != before[1]


def test_copies_of_a_folder_are_the_same_files(folder: Path) -> None:
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    for file in copy.rglob("*.png"):
        os.utime(file, ns=(1, 1))
    assert same_files(f"imagefolder:{folder}", f"imagefolder:{copy}")
    assert same_files(f"imagefolder:{folder}", f"images:{copy}")
    (copy / "0" / "000.png").unlink()
    assert not same_files(f"imagefolder:{folder}", f"imagefolder:{copy}")
    first, second = lists(folder)
    assert not same_files(first, second) and same_files(first, first)
    assert not same_files(None, first) and not same_files(None, None)


def test_lists_of_a_recipe_must_not_overlap(folder: Path) -> None:
    first, second = lists(folder)
    refuse_overlaps({"train": first, "val": second, "test": None})
    with pytest.raises(UsageError, match=r"train \(.*and test \(.*in common"):
        refuse_overlaps({"train": first, "val": second, "test": first})


def test_paths_of_a_recipe_are_relative_to_it(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: {name: net.onnx}\ndata: {train: 'imagefolder:d?without=../l.txt', val: 'images:d'}"
    )
    recipe = load_recipe(path, {})
    assert recipe.data.train == f"imagefolder:{tmp_path}/d?without={tmp_path.parent}/l.txt"
    assert recipe.data.val == f"images:{tmp_path}/d"
    assert recipe.model.name == f"{tmp_path}/net.onnx"


def test_a_run_on_hold_outs(folder: Path) -> None:
    project = tiny.write_project(folder.parent / "project")
    train, val = lists(folder)
    text = project.read_text().replace("npz:train.npz", f"'{train}'")
    project.write_text(text.replace("npz:val.npz", f"'{val}'"))
    overrides = {"measure.networks": 0, "finetune.options.epochs": 1}
    overrides["finetune.options.batch"] = 8
    summary, _ = tiny.run(folder.parent / "runs", project, overrides=overrides)
    assert 0 <= summary["merged"]["accuracy"] <= 1
    overrides["data.val"] = train
    with pytest.raises(UsageError, match="in common"):
        tiny.run(folder.parent / "runs", project, overrides=overrides)
