"""Batches through torch's DataLoader, and those of somebody's own loader."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from tests.data.helpers import PREPROCESS
from trt_layermerge.data import Framing, LabelledData, open_data, pairs, split
from trt_layermerge.data import loader as module
from trt_layermerge.data.loader import WORKERS, Batches, GivenBatches, batch_of, usual_workers
from trt_layermerge.data.sources import DatasetData
from trt_layermerge.errors import CorruptInputError, UsageError

Make = Callable[..., LabelledData]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Returns a folder of 24 images of 2 classes."""
    rng = np.random.default_rng(0)
    for i in range(24):
        (tmp_path / "d" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "d" / "ab"[i % 2] / f"{i:02}.png")
    return tmp_path / "d"


def opened(folder: Path) -> LabelledData:
    return open_data(f"imagefolder:{folder}", PREPROCESS, framing=Framing((8, 8)))


def listed(found: Any) -> tuple[Tensor, Tensor]:
    images, labels = zip(*found, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_workers_give_what_one_process_gives(folder: Path) -> None:
    data = opened(folder)
    alone = listed(Batches(data, 5, workers=0).drawn(2))
    shared = listed(Batches(data, 5, workers=2).drawn(2))
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    whole, labels = data.batch(torch.arange(24))
    assert torch.equal(listed(Batches(data, 5, workers=2).drawn(None))[0], whole)
    assert not torch.equal(alone[0], whole) and labels is not None
    assert torch.equal(alone[1].sort().values, labels.sort().values)


def test_epochs_differ_in_order_and_come_again(folder: Path) -> None:
    loader = Batches(opened(folder), 5, drop_last=True, workers=1)
    assert len(loader) == 4
    first, second, again = (listed(loader.drawn(seed))[0] for seed in (1, 2, 1))
    assert len(first) == 20
    assert torch.equal(first, again) and not torch.equal(first, second)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_damaged_is_named_whoever_reads_it(folder: Path, workers: int) -> None:
    (folder / "b" / "07.png").write_bytes(b"no image")
    with pytest.raises(CorruptInputError, match=r"^the image .*07\.png is damaged") as caught:
        list(Batches(opened(folder), 5, workers=workers).drawn(None))
    assert "Traceback" not in str(caught.value)


def test_loading_leaves_the_callers_randomness_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(Batches(opened(folder), 5, workers=workers).drawn(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_share_every_batch(make_data: Make) -> None:
    data = make_data(25)
    whole = list(Batches(data, 7).drawn(5))
    parts = [list(Batches(data, 7, share=(i, 3)).drawn(5)) for i in range(3)]
    for number, (images, labels) in enumerate(whole):
        shares = [part[number] for part in parts if number < len(part)]
        assert torch.equal(torch.cat([x for x, _ in shares]), images)
        assert torch.equal(torch.cat([y for _, y in shares]), labels)
    assert [len(part[0][0]) for part in parts] == [3, 2, 2]
    lonely = list(Batches(data, 24, share=(2, 3)).drawn(None))
    assert [len(x) for x, _ in lonely] == [8]  # of the last batch, one image, it has none


def test_how_many_processes_load(
    folder: Path, make_data: Make, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: range(64))
    photos, mine = opened(folder), DatasetData([(torch.zeros(3, 4, 4), 0)] * 9, "mine", ())
    array = split(make_data(40), 30, 0)[0]
    assert [usual_workers(array, 5, 100, by_image) for by_image in (False, True)] == [0, WORKERS]
    for data in (photos, split(photos, 20, 0)[0], mine):
        assert usual_workers(data, 5, 100, False) == WORKERS
        assert usual_workers(data, 5, 3, False) == 2
        assert usual_workers(data, 5, 1, False) == 0
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: range(2))
    assert usual_workers(photos, 5, 100, False) == 2
    # A worker is two batches ahead: 5 images of 8 x 8 x 3 floats, twice.
    room = [1.5 * 2 * 5 * 8 * 8 * 3 * 4]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": int(room[0])})())
    monkeypatch.setattr(module.os.path, "isdir", lambda _: True)
    assert usual_workers(photos, 5, 100, False) == 1
    assert "--ipc=host" in caplog.text


def test_batches_of_ones_own_are_used_as_they_are() -> None:
    images, labels = torch.randn(10, 3, 4, 4), torch.arange(10, dtype=torch.int32)
    unlabelled = [images[:6], images[6:]]
    assert [y for _, y in GivenBatches(unlabelled).drawn(1)] == [None, None]
    loader = DataLoader(TensorDataset(images, labels), 4)
    given = GivenBatches(loader)
    assert len(given) == 3
    for seed in (1, 2):
        found = listed(given.drawn(seed))
        assert torch.equal(found[0], images) and found[1].dtype == torch.int64
    (alone,) = list(DataLoader(TensorDataset(images), 10))
    assert torch.equal(batch_of(alone)[0], images) and batch_of(alone)[1] is None
    assert torch.equal(batch_of([images, labels, "names"])[1], labels.long())


def test_batches_without_a_length_are_counted() -> None:
    class Endless:
        passes = 0

        def __iter__(self) -> Any:
            Endless.passes += 1
            return iter([torch.zeros(2, 3, 4, 4)] * 5)

    assert len(GivenBatches(Endless())) == 5 and Endless.passes == 1
    with pytest.raises(UsageError, match="a generator gives them once"):
        GivenBatches(iter([torch.zeros(2, 3, 4, 4)]))
    with pytest.raises(UsageError, match="no batch of images"):
        GivenBatches([])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"image": 1}, "dict"),
        ([], "list of nothing"),
        (torch.zeros(2, 3, 4, 4).byte(), r"a tensor .2, 3, 4, 4. of torch\.uint8"),
        ((torch.zeros(2, 3, 4, 4), torch.zeros(2)), r"tuple of .*float32, a tensor"),
        ((torch.zeros(2, 3, 4, 4), torch.arange(3)), "tuple of"),
        ((torch.zeros(2, 3, 4, 4), ["a", "b"]), r"tuple of .*, list of str"),
    ],
)
def test_what_is_no_batch_is_told(wrong: Any, told: str) -> None:
    with pytest.raises(UsageError, match=f"gives {told}"):
        batch_of(wrong)


def test_pairs_are_those_of_a_set_or_of_a_loader(make_data: Make) -> None:
    data = make_data(11)
    images, labels = listed(pairs(data, 4))
    assert torch.equal(images, data.batch(torch.arange(11))[0])
    given = [(images[:5], labels[:5]), (images[5:], labels[5:])]
    assert torch.equal(listed(pairs(given, 4))[0], images)
