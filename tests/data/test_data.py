"""Sources of labelled images: what they give, and what they refuse."""

from __future__ import annotations

import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.helpers import PREPROCESS, save_images
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.data import LabelledData, aligned, batches, draw, open_data, split
from trt_layermerge.data.images import Framing
from trt_layermerge.data.loader import Batches
from trt_layermerge.errors import (
    CorruptInputError,
    LayerMergeError,
    UntrustedInputError,
    UsageError,
)

Make = Callable[..., LabelledData]


def test_npz_batches_are_bit_equal_to_the_preprocessing(tmp_path: Path) -> None:
    images, labels = save_images(tmp_path / "a.npz", 11)
    data = open_data(f"npz:{tmp_path / 'a.npz'}", PREPROCESS)
    picked = torch.tensor([7, 0, 10])
    found, found_labels = data.batch(picked)
    assert len(data) == 11
    assert data.class_names == ("r", "g", "b")
    assert found.dtype == torch.float32 and found_labels.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), PREPROCESS(images[picked]))
    np.testing.assert_array_equal(found_labels.numpy(), labels[picked])


def test_batch_leaves_the_stored_images_alone(make_data: Make) -> None:
    data, indices = make_data(4), torch.arange(4)
    first = data.batch(indices)[0].clone()
    data.batch(indices)[0].zero_()
    torch.testing.assert_close(data.batch(indices)[0], first, rtol=0, atol=0)


def test_labels_without_names_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((2, 4, 4, 3), np.uint8), labels=np.array([0, 2], np.int32))
    assert open_data(f"npz:{path}", PREPROCESS).class_names == ("0", "1", "2")


def test_limit_draws_without_replacement_in_order(make_data: Make) -> None:
    whole = make_data(40)
    part = draw(whole, 15, seed=0)
    again = draw(whole, 15, seed=0)
    assert len(part) == 15
    images = part.batch(torch.arange(15))[0]
    torch.testing.assert_close(images, again.batch(torch.arange(15))[0], rtol=0, atol=0)
    all_images = whole.batch(torch.arange(40))[0]
    where = [int((all_images == x).flatten(1).all(1).nonzero()) for x in images]
    assert where == sorted(set(where))
    assert where != list(range(15))
    assert draw(whole, 99, seed=0) is whole


def test_at_least_one_image_is_drawn(make_data: Make) -> None:
    with pytest.raises(UsageError, match="at least one"):
        draw(make_data(11), 0, seed=0)


def test_split_is_disjoint_and_complete(make_data: Make) -> None:
    first, second = split(make_data(40), 13, seed=5)
    assert (len(first), len(second)) == (13, 27)
    assert sorted([*first.indices.tolist(), *second.indices.tolist()]) == list(range(40))
    inner, outer = split(second, 7, seed=5)
    assert not set(first.indices.tolist()) & set(second.indices[inner.indices].tolist())
    assert len(outer) == 20
    with pytest.raises(UsageError, match="from 1 to 39"):
        split(make_data(40), 40, seed=0)


def test_batches_in_order_and_shuffled(make_data: Make) -> None:
    data = make_data(10)
    ordered = [y.tolist() for _, y in batches(data, 4)]
    assert [len(y) for y in ordered] == [4, 4, 2]
    assert [y for ys in ordered for y in ys] == data.batch(torch.arange(10))[1].tolist()
    dropped = list(Batches(data, 4, drop_last=True).drawn(None))
    assert [len(y) for _, y in dropped] == [4, 4]
    one, same, other = (torch.cat([x for x, _ in Batches(data, 4).drawn(s)]) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def _write(path: Path, **arrays: object) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return f"npz:{path}"


IMAGES, LABELS = np.zeros((3, 4, 4, 3), np.uint8), np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": LABELS}, "images and labels"),
        ({"images": IMAGES.astype(np.float32), "labels": LABELS}, "not uint8"),
        ({"images": IMAGES[0], "labels": LABELS}, "not uint8"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "no images"),
        ({"images": IMAGES, "labels": LABELS[:2]}, "not integers"),
        ({"images": IMAGES, "labels": LABELS.astype(float)}, "not integers"),
        ({"images": IMAGES, "labels": LABELS - 1}, "labels run from -1"),
        ({"images": IMAGES, "labels": LABELS, "class_names": np.array(["a"])}, "1 class names"),
        ({"images": IMAGES, "labels": LABELS, "class_names": np.arange(3)}, "not strings"),
    ],
)
def test_malformed_arrays_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(CorruptInputError, match=message):
        open_data(_write(tmp_path / "a.npz", **arrays), PREPROCESS)


def test_channels_must_fit_the_preprocessing(tmp_path: Path) -> None:
    source = _write(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    with pytest.raises(UsageError, match="3 channels"):
        open_data(source, Preprocess(1 / 255, (0.5,), (0.5,)))


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    objects = np.array([Payload(mark), None], dtype=object)
    zipped, bare = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez(zipped, images=objects, labels=LABELS)
    bare.write_bytes(pickle.dumps(Payload(mark)))
    names = tmp_path / "c.npz"
    np.savez(names, images=IMAGES, labels=LABELS, class_names=objects)
    for path in (zipped, bare, names):
        with pytest.raises(UntrustedInputError, match="pickled"):
            open_data(f"npz:{path}", PREPROCESS)
    assert not mark.exists()


def test_every_truncation_and_many_mutations_end_in_our_errors(tmp_path: Path) -> None:
    whole, broken = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez_compressed(whole, images=IMAGES, labels=LABELS)
    good = whole.read_bytes()
    rng = random.Random(0)
    variants = [good[:n] for n in range(0, len(good), 3)]
    for _ in range(400):
        mutated = bytearray(good)
        mutated[rng.randrange(len(good))] = rng.randrange(256)
        variants.append(bytes(mutated))
    refused = 0
    for variant in variants:
        broken.write_bytes(variant)
        try:
            open_data(f"npz:{broken}", PREPROCESS)
        except LayerMergeError:
            refused += 1
    assert refused >= len(good) // 3  # all truncations at least


@pytest.mark.parametrize("name", ["images", "labels", "class_names"])
def test_a_member_that_is_no_array_is_refused(tmp_path: Path, name: str) -> None:
    """``numpy.load`` gives what has another beginning back as it is."""
    arrays = {"images": IMAGES, "labels": LABELS, "class_names": np.array(["a", "b", "c"])}
    np.savez(tmp_path / "a.npz", **{k: v for k, v in arrays.items() if k != name})
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr(f"{name}.npy", b"/etc/passwd")
    with pytest.raises(CorruptInputError, match="a member of it is no array"):
        open_data(f"npz:{tmp_path / 'a.npz'}", PREPROCESS)


def test_a_plain_array_is_no_archive(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(CorruptInputError, match="cannot be used"):
        open_data(f"npz:{tmp_path / 'a.npz'}", PREPROCESS)


@pytest.mark.parametrize("source", ["npz:absent.npz", "imagefolder:absent", "absent.py:make"])
def test_missing_sources(source: str) -> None:
    with pytest.raises(UsageError, match="there is no"):
        open_data(source, PREPROCESS, framing=Framing((4, 4)))


@pytest.mark.parametrize("source", ["", "npz:", "data.npz", "tar:x", ":make"])
def test_unknown_names(source: str) -> None:
    with pytest.raises(UsageError, match="type npz:FILE"):
        open_data(source, PREPROCESS)


def _folder(path: Path) -> None:
    for label, value in (("b", 200), ("a", 100)):
        (path / label).mkdir(parents=True)
        pixels = np.full((6, 12, 3), value, np.uint8)
        pixels[:, :3] = 0  # falls outside the centre
        Image.fromarray(pixels).save(path / label / "one.png")


def test_image_folder_resizes_and_crops_the_centre(tmp_path: Path) -> None:
    _folder(tmp_path / "d")
    (tmp_path / "d" / "a" / "notes.txt").write_text("no image")
    data = open_data(f"imagefolder:{tmp_path / 'd'}", PREPROCESS, framing=Framing((6, 6)))
    images, labels = data.batch(torch.tensor([0, 1]))
    assert data.class_names == ("a", "b")
    assert labels.tolist() == [0, 1]
    expected = PREPROCESS(np.stack([np.full((6, 6, 3), v, np.uint8) for v in (100, 200)]))
    np.testing.assert_array_equal(images.numpy(), expected)
    small = open_data(f"imagefolder:{tmp_path / 'd'}", PREPROCESS, framing=Framing((3, 2)))
    assert small.batch(torch.tensor([1]))[0].shape == (1, 3, 3, 2)


def test_image_folder_refusals(tmp_path: Path) -> None:
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(UsageError, match="no images"):
        open_data(f"imagefolder:{tmp_path / 'empty'}", PREPROCESS, framing=Framing((4, 4)))
    _folder(tmp_path / "d")
    with pytest.raises(UsageError, match="rows and columns"):
        open_data(f"imagefolder:{tmp_path / 'd'}", PREPROCESS)
    (tmp_path / "d" / "a" / "one.png").write_bytes(b"not an image")
    data = open_data(f"imagefolder:{tmp_path / 'd'}", PREPROCESS, framing=Framing((4, 4)))
    with pytest.raises(CorruptInputError, match=r"one\.png"):
        data.batch(torch.tensor([0]))


FACTORY = """
import torch
class Data:
    classes = ["x", "y"]
    def __init__(self, dtype): self.dtype = dtype
    def __len__(self): return 4
    def __getitem__(self, i): return torch.full((3, 2, 2), i, dtype=self.dtype), i % 2
def good(): return Data(torch.float64)
def integers(): return Data(torch.int64)
def unequal():
    return [(torch.zeros(3, 2 + i, 2), 0) for i in range(4)]
def none(): return None
def empty(): return []
"""


def test_a_dataset_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FACTORY)
    data = open_data(f"{file}:good", PREPROCESS)
    images, labels = data.batch(torch.tensor([3, 0]))
    assert (len(data), data.class_names) == (4, ("x", "y"))
    assert images.dtype == torch.float32
    assert images[:, 0, 0, 0].tolist() == [3.0, 0.0]
    assert labels.tolist() == [1, 0]
    for wrong in ("integers", "unequal"):
        with pytest.raises(CorruptInputError, match=wrong):
            open_data(f"{file}:{wrong}", PREPROCESS).batch(torch.arange(4))
    for wrong in ("none", "empty", "absent"):
        with pytest.raises(UsageError, match=wrong):
            open_data(f"{file}:{wrong}", PREPROCESS)


def test_an_archive_of_images_alone_has_no_labels(tmp_path: Path) -> None:
    source = _write(tmp_path / "a.npz", images=IMAGES)
    data = open_data(source, PREPROCESS)
    images, labels = data.batch(torch.tensor([1, 0]))
    assert (data.labelled, labels, data.class_names, len(data)) == (False, None, (), len(IMAGES))
    expected = PREPROCESS(IMAGES)[[1, 0]]
    np.testing.assert_array_equal(images.numpy(), expected)
    part = draw(data, 2, seed=0)
    assert not part.labelled and [y for _, y in batches(part, 1)] == [None, None]


def test_labels_under_another_name_are_not_taken_for_none(tmp_path: Path) -> None:
    source = _write(tmp_path / "a.npz", images=IMAGES, y=LABELS)
    with pytest.raises(CorruptInputError, match="images and labels, or images alone"):
        open_data(source, PREPROCESS)


def test_a_flat_folder_is_images_without_labels(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name, value in (("b.png", 200), ("a.png", 100), ("deep/c.png", 50)):
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    data = open_data(f"images:{tmp_path}", PREPROCESS, framing=Framing((8, 8)))
    images, labels = data.batch(torch.arange(3))
    assert (len(data), data.labelled, labels, data.class_names) == (3, False, None, ())
    expected = PREPROCESS(np.array([100, 200, 50], np.uint8)[:, None, None, None].repeat(3, 3))
    np.testing.assert_array_equal(images[:, :, :1, :1].numpy(), expected)
    with pytest.raises(UsageError, match=f"or type images:{tmp_path}"):
        (tmp_path / "deep" / "c.png").unlink()
        open_data(f"imagefolder:{tmp_path}", PREPROCESS, framing=Framing((8, 8)))
    with pytest.raises(UsageError, match="has no images"):
        open_data(f"images:{tmp_path / 'deep'}", PREPROCESS, framing=Framing((8, 8)))
    with pytest.raises(UsageError, match="check the name after images:"):
        open_data(f"images:{tmp_path / 'none'}", PREPROCESS, framing=Framing((8, 8)))


def test_a_small_archive_of_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    images = np.zeros((6000, 224, 224, 3), np.uint8)
    np.savez_compressed(tmp_path / "z.npz", images=images, labels=np.zeros(6000, np.int64))
    assert (tmp_path / "z.npz").stat().st_size < 2**20
    with pytest.raises(CorruptInputError, match=r"says that it holds 903,.* and up to .* are read"):
        open_data(f"npz:{tmp_path}/z.npz", PREPROCESS)


def test_an_archive_may_label_every_pixel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
    maps = rng.integers(0, 3, (5, 6, 8), dtype=np.uint8)
    maps[:, 0] = 255
    data = open_data(_write(tmp_path / "a.npz", images=images, labels=maps), PREPROCESS)
    assert data.class_names == ("0", "1", "2")
    _, found = data.batch(torch.tensor([3, 1]))
    assert found is not None and found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), maps[[3, 1]])
    named = _write(tmp_path / "b.npz", images=images, labels=maps, class_names=list("abc"))
    turned = aligned(open_data(named, PREPROCESS), ("c", "a", "b"))
    _, found = turned.batch(torch.arange(5))
    expected = np.array([1, 2, 0] + [-1] * 252 + [255])[maps]  # 255 is no class by any name
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(CorruptInputError, match=r"not integers \(N,\) or \(N, H, W\)"):
        source = _write(tmp_path / "c.npz", images=images, labels=maps[:, :4])
        open_data(source, PREPROCESS)
