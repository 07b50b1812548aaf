"""Saved datasets of Hugging Face's library; skipped where it is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.helpers import PREPROCESS
from trt_layermerge.data import open_data
from trt_layermerge.data.images import Framing
from trt_layermerge.errors import CorruptInputError, MissingDependencyError, UsageError

SIZE = Framing((6, 6))


def test_without_the_library_it_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"trt-layermerge\[huggingface\]"):
        open_data(f"hf:{tmp_path}", PREPROCESS, framing=SIZE)
    with pytest.raises(UsageError, match="there is no folder"):
        open_data(f"hf:{tmp_path}/none", PREPROCESS, framing=SIZE)
    with pytest.raises(UsageError, match="rows and columns"):
        open_data(f"hf:{tmp_path}", PREPROCESS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_saved_dataset_equals_its_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(0)
    files, labels = [], []
    for i in range(5):
        label = ("ant", "bee")[i % 2]
        file = tmp_path / "d" / label / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 12, 3), dtype=np.uint8)).save(file)
        files.append(str(file))
        labels.append(i % 2)
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["ant", "bee"])}
    )
    rows = datasets.Dataset.from_dict({"picture": files, "kind": labels}, features=features)
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    data = open_data(f"hf:{tmp_path}/saved?split=train", PREPROCESS, framing=SIZE)
    folder = open_data(f"imagefolder:{tmp_path}/d", PREPROCESS, framing=SIZE)
    order = torch.tensor([0, 2, 4, 1, 3])  # a folder has one class after the other
    (images, kinds), (expected, expected_kinds) = data.batch(order), folder.batch(torch.arange(5))
    assert torch.equal(images, expected) and kinds is not None and expected_kinds is not None
    assert torch.equal(kinds, expected_kinds)
    assert data.class_names == folder.class_names == ("ant", "bee") and data.labelled
    rows.remove_columns("kind").save_to_disk(str(tmp_path / "bare"))
    bare = open_data(f"hf:{tmp_path}/bare", PREPROCESS, framing=SIZE)
    assert not bare.labelled and bare.batch(torch.arange(2))[1] is None
    for wrong in ("saved", "saved?split=test", "bare?split=train"):
        with pytest.raises(UsageError, match="split"):
            open_data(f"hf:{tmp_path}/{wrong}", PREPROCESS, framing=SIZE)
    rows.remove_columns("picture").save_to_disk(str(tmp_path / "blind"))
    with pytest.raises(UsageError, match="0 columns of images"):
        open_data(f"hf:{tmp_path}/blind", PREPROCESS, framing=SIZE)
    with pytest.raises(CorruptInputError, match="no saved dataset"):
        open_data(f"hf:{tmp_path}/d", PREPROCESS, framing=SIZE)
