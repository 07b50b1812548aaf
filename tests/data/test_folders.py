"""Folders of images: odd files, lists, and hold-outs that anybody can draw again."""

from __future__ import annotations

import hashlib
import io
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.data.helpers import PREPROCESS
from trt_layermerge.data import (
    LabelledData,
    aligned,
    class_list,
    draw,
    holdout,
    open_data,
    order_note,
)
from trt_layermerge.data.folders import FolderData, framed
from trt_layermerge.data.images import Framing, read_image
from trt_layermerge.data.lists import read_list, refuse_overlap, write_list
from trt_layermerge.data.names import parse_name
from trt_layermerge.errors import CorruptInputError, UsageError

SMALL = Framing((4, 4))
COUNTS = {"ant": 7, "bee": 20, "cat": 13}


def make_folder(folder: Path, counts: dict[str, int] = COUNTS) -> Path:
    """Writes images of one colour each, all different, as PNG."""
    value = 0
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            value += 1
            pixels = np.full((4, 4, 3), (value, 255 - value, 7), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03}.png")
    return folder


def opened(source: str, framing: Framing = SMALL) -> FolderData:
    data: LabelledData = open_data(source, PREPROCESS, framing=framing)
    assert isinstance(data, FolderData)
    return data


# Odd files


def gradient(mode: str = "RGB") -> Image.Image:
    """A picture that is dark at the left and bright at the right, 8 high and 16 wide."""
    row = np.linspace(0, 255, 16).astype(np.uint8)
    return Image.fromarray(np.tile(row, (8, 1))).convert(mode)


def shown(path: Path, size: tuple[int, int] = (8, 16)) -> np.ndarray:
    return pixels_of(path, Framing(size))


def pixels_of(path: Path, framing: Framing, content: bytes | None = None) -> np.ndarray:
    image = read_image(path, content, max(framing.covered))
    return framed(image, framing).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(np.asarray(gradient("L")).astype(np.uint16) * 257).save(path)
    else:
        gradient("L").convert("RGB").convert(mode, dither=Image.Dither.NONE).save(path)
    pixels = shown(path).astype(int)
    assert pixels.shape == (8, 16, 3)
    expected = np.asarray(gradient()).astype(int)
    if mode == "1":
        expected = (expected >= 128) * 255
    # A palette of 6x6x6 colours is the coarsest of these.
    assert np.abs(pixels - expected).max() <= (30 if mode == "P" else 1)


def test_a_palette_with_transparency_warns_of_nothing(tmp_path: Path) -> None:
    image = gradient("P")
    image.save(tmp_path / "a.png", transparency=bytes(range(256)))
    assert shown(tmp_path / "a.png").shape == (8, 16, 3)


def test_numbers_of_unknown_range_are_refused(tmp_path: Path) -> None:
    for dtype in (np.float32, np.int32):
        Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "a.tif")
        with pytest.raises(CorruptInputError, match=r"a\.tif.*32-bit numbers"):
            shown(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_upright(tmp_path: Path, orientation: int) -> None:
    upright = np.asarray(gradient()).copy()
    upright[0] = 255  # tells top from bottom
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(shown(tmp_path / "a.png"), upright)


def test_broken_files_are_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"a": 3})
    file = folder / "a" / "001.png"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"GIF89a"):
        file.write_bytes(content)
        with pytest.raises(CorruptInputError, match=r"001\.png"):
            opened(f"imagefolder:{folder}").batch(torch.arange(3))


def test_large_photos_are_decoded_small_and_look_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    coarse.resize((1600, 1200), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        image.draft("RGB", (128, 128))
        assert image.size == (200, 150)  # the negative control: draft mode applies at this size
    exact = Image.open(tmp_path / "a.jpg").convert("RGB")
    expected = np.asarray(v2.Compose([v2.Resize(64), v2.CenterCrop(64)])(exact))
    found = pixels_of(tmp_path / "a.jpg", Framing((64, 64)))
    assert np.abs(found.astype(int) - expected.astype(int)).mean() < 1


def test_framing_resizes_to_more_and_cuts_the_centre(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = pixels_of(tmp_path / "a.png", Framing((8, 8), 0.8, "bicubic"))
    resized = Image.fromarray(pixels).resize((15, 10), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found, np.asarray(resized)[1:9, 4:12])


@pytest.mark.parametrize("shape", [(20, 30), (31, 20), (17, 17), (100, 23)])
def test_a_square_is_framed_as_torchvision_does(tmp_path: Path, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = pixels_of(tmp_path / "a.png", Framing((14, 14), 0.875))
    usual = v2.Compose([v2.Resize(16), v2.CenterCrop(14)])(Image.fromarray(pixels))
    np.testing.assert_array_equal(found, np.asarray(usual))


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (8, 40), (40, 8)])
def test_what_is_no_square_is_covered(tmp_path: Path, shape: tuple[int, int]) -> None:
    Image.fromarray(np.full((*shape, 3), 90, np.uint8)).save(tmp_path / "a.png")
    found = pixels_of(tmp_path / "a.png", Framing((6, 12), 0.75))
    assert found.shape == (6, 12, 3) and (found == 90).all()  # no border is made up


def test_only_formats_of_images_are_decoded(tmp_path: Path) -> None:
    image = gradient()
    for kind in ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF"):
        image.save(tmp_path / "a.png", kind)
        assert shown(tmp_path / "a.png").shape == (8, 16, 3)
    for kind in ("EPS", "PCX", "TGA"):
        image.save(tmp_path / "a.png", kind)
        with Image.open(tmp_path / "a.png") as known:  # the negative control: Pillow itself does
            assert known.format == kind
        with pytest.raises(CorruptInputError, match="of a kind that is not read"):
            shown(tmp_path / "a.png")


def test_a_sound_file_of_a_kind_that_is_not_read_is_told_with_what_to_do(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"a": 2})
    gradient().save(file := folder / "b.tif")
    assert opened(f"images:{folder}").batch(torch.arange(3))[0].shape == (3, 3, 4, 4)
    bits = file.read_bytes().replace(struct.pack("<3H", 8, 8, 8), struct.pack("<3H", 64, 64, 64))
    file.write_bytes(bits)
    with pytest.raises(CorruptInputError, match=r"b\.tif is damaged, or of a kind.*save it as PNG"):
        opened(f"images:{folder}").batch(torch.arange(3))


# Classes


def test_classes_keep_their_number(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"b": 2, "B": 1, "10": 1, "9": 1})
    (folder / "a").mkdir()
    (folder / ".thumbnails").mkdir()
    (folder / "b" / ".hidden.png").write_bytes(b"")
    data = opened(f"imagefolder:{folder}")
    assert data.class_names == ("10", "9", "B", "a", "b")
    assert data.labels is not None and data.labels.tolist() == [0, 1, 2, 4, 4]


# Hold-outs


def test_hold_outs_are_disjoint_and_stratified(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d")
    first, second = holdout.hold_out(folder, 10, seed=3)
    paths = [{i.path for i in part.images} for part in (first, second)]
    assert [len(p) for p in paths] == [10, 10] and not paths[0] & paths[1]
    for part in (first, second):
        # 10 of 40: 1.75, 5 and 3.25; the largest remainder is rounded up.
        assert Counter(i.label for i in part.images) == {0: 2, 1: 5, 2: 3}
        assert part.classes == ("ant", "bee", "cat")
        for image in part.images:
            content = (folder / image.path).read_bytes()
            assert (image.size, image.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    again = holdout.hold_out(make_folder(tmp_path / "elsewhere" / "d"), 10, seed=3)
    assert again == (first, second)
    other, _ = holdout.hold_out(folder, 10, seed=4)
    assert {i.path for i in other.images} != paths[0]


def test_which_images_are_drawn_is_a_matter_of_hashes(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"ant": 6})
    first, second = holdout.hold_out(folder, 2, seed=7)
    order = sorted(
        (f"ant/{i:03}.png" for i in range(6)),
        key=lambda path: hashlib.sha256(f"7:{path}".encode()).hexdigest(),
    )
    assert [i.path for i in first.images] == sorted(order[:2])
    assert [i.path for i in second.images] == sorted(order[2:4])


def test_copies_of_an_image_are_drawn_once(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d", {"ant": 4, "bee": 4})
    for i in range(2):
        (folder / "bee" / f"00{i}.png").write_bytes((folder / "ant" / f"00{i}.png").read_bytes())
    parts = holdout.hold_out(folder, 3, seed=0)
    digests = [i.sha256 for part in parts for i in part.images]
    assert len(set(digests)) == len(digests) == 6
    with pytest.raises(UsageError, match="class bee has 2 different images"):
        holdout.hold_out(folder, 4, seed=0)


def test_too_much_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "d")
    for count in (0, 21):
        with pytest.raises(UsageError, match="from 1 to 20"):
            holdout.hold_out(folder, count, seed=0)
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match="empty"):
        holdout.hold_out(folder, 2, seed=0)
    with pytest.raises(UsageError, match="there is no folder"):
        holdout.hold_out(tmp_path / "none", 2, seed=0)


@pytest.fixture
def lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, Path, Path]:
    """Returns a folder, and the lists that the command writes of it."""
    folder = make_folder(tmp_path / "d")
    out = str(tmp_path / "lists" / "insects")
    assert holdout.main([str(folder), "--images", "10", "--seed", "3", "--out", out]) == 0
    assert "10 images of 3 classes" in capsys.readouterr().out
    return folder, *(tmp_path / "lists" / f"insects-{p}.txt" for p in holdout.PARTS)


def test_lists_choose_and_leave_out(lists: tuple[Path, Path, Path]) -> None:
    folder, first, second = lists
    chosen = opened(f"imagefolder:{folder}?list={first}")
    others = opened(f"imagefolder:{folder}?without={first}")
    whole = opened(f"imagefolder:{folder}")
    assert (len(chosen), len(others), len(whole)) == (10, 30, 40)
    assert set(chosen.files) | set(others.files) == set(whole.files)
    assert chosen.class_names == whole.class_names
    images, labels = chosen.batch(torch.arange(10))
    assert labels is not None
    for image, label, file in zip(images, labels, chosen.files, strict=True):
        i = whole.files.index(file)
        expected, expected_label = whole.batch(torch.tensor([i]))
        assert torch.equal(image, expected[0]) and expected_label is not None
        assert int(label) == int(expected_label)
    assert not set(opened(f"imagefolder:{folder}?list={second}").files) & set(chosen.files)


def test_a_changed_or_missing_file_is_named(lists: tuple[Path, Path, Path]) -> None:
    folder, first, _ = lists
    data = opened(f"imagefolder:{folder}?list={first}")
    original = data.files[4].read_bytes()
    longer, same_size = original + b"\0", bytearray(original)
    same_size[-1] ^= 1
    for content, message in ((longer, "bytes, not"), (bytes(same_size), "another hash")):
        data.files[4].write_bytes(content)
        with pytest.raises(CorruptInputError, match=f"{data.files[4].name}.*{message}"):
            data.batch(torch.tensor([4]))
    data.batch(torch.tensor([0, 1, 2, 3, 5]))  # nothing else was read
    data.files[4].unlink()
    with pytest.raises(CorruptInputError, match=f"{data.files[4].name} cannot be read"):
        data.batch(torch.tensor([4]))


def test_overlapping_lists_are_refused(lists: tuple[Path, Path, Path]) -> None:
    first, second = (read_list(path) for path in lists[1:])
    refuse_overlap({"train": first, "val": second})
    moved = second.images[:1]
    wrong = type(first)(first.classes, (*first.images, *moved))
    with pytest.raises(UsageError, match=f"train and val have images in common.*{moved[0].path}"):
        refuse_overlap({"train": wrong, "val": second})


def test_lists_survive_being_written(lists: tuple[Path, Path, Path], tmp_path: Path) -> None:
    listed = read_list(lists[1])
    assert listed.about == {"part": "train-holdout", "seed": 3, "folder": "d", "of": 40}
    write_list(tmp_path / "again.txt", listed)
    assert (tmp_path / "again.txt").read_bytes() == lists[1].read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text.replace("images@1", "images@9"),
        lambda text: text.replace("ant/", "../ant/"),
        lambda text: text.replace("ant/", "/ant/"),
        lambda text: text.replace("\tant", " ant", 1),
        lambda text: text.replace("\t0\t", "\t3\t", 1),
        lambda text: text.split("\n")[0] + "\n",
        lambda text: text[:-80],
        lambda text: "[]\n" + text,
    ],
)
def test_damaged_lists_are_refused(lists: tuple[Path, Path, Path], change: object) -> None:
    path = lists[1]
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(CorruptInputError, match="list"):
        opened(f"imagefolder:{lists[0]}?list={path}")


# Names


@pytest.mark.parametrize(
    "name",
    [
        "npz:a.npz",
        "imagefolder:d",
        "imagefolder:d?list=l.txt",
        "imagefolder:d?without=x/l.txt",
        "images:d",
        "a.py:make",
        "hf:d",
        "hf:d?split=train",
    ],
)
def test_names_are_written_as_they_are_read(name: str, tmp_path: Path) -> None:
    assert str(parse_name(name)) == name
    below = parse_name(name).below(tmp_path)
    assert parse_name(str(below)) == below == below.below(Path("/elsewhere"))


@pytest.mark.parametrize(
    "name",
    [
        "imagefolder:?list=a",
        "imagefolder:d?",
        "imagefolder:d?lists=a",
        "imagefolder:d?list=",
        "imagefolder:d?list=a&without=b",
        "python:a",
        "images:",
        "a.py:",
        "hf:d?list=a",
    ],
)
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(UsageError, match="type npz:FILE"):
        parse_name(name)


def test_an_error_of_the_command_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert holdout.main([str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_content_in_memory_is_enough(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    gradient().save(buffer, "PNG")
    np.testing.assert_array_equal(
        pixels_of(tmp_path / "nowhere.png", Framing((8, 16)), buffer.getvalue()),
        np.asarray(gradient()),
    )


def labels_of(data: LabelledData) -> list[int]:
    labels = data.batch(torch.arange(len(data)))[1]
    assert labels is not None
    return labels.tolist()


def test_a_split_without_a_class_is_numbered_as_the_training_images(tmp_path: Path) -> None:
    """Without ``ant``, a folder calls ``bee`` 0 and ``cat`` 1."""
    train = opened(f"imagefolder:{make_folder(tmp_path / 'train')}")
    test = opened(f"imagefolder:{make_folder(tmp_path / 'test', {'bee': 2, 'cat': 1})}")
    assert labels_of(test) == [0, 0, 1]
    found = aligned(test, train.class_names)
    assert labels_of(found) == [1, 1, 2]
    assert found.class_names == ("ant", "bee", "cat")
    assert labels_of(aligned(draw(test, 2, 0), train.class_names)) in ([1, 1], [1, 2])
    assert aligned(train, train.class_names) is train


def test_archives_and_datasets_are_aligned_by_name_too(tmp_path: Path) -> None:
    images = np.zeros((3, 4, 4, 3), np.uint8)
    names = np.array(["cat", "ant"])
    np.savez(tmp_path / "test.npz", images=images, labels=np.array([0, 1, 0]), class_names=names)
    data = open_data(f"npz:{tmp_path}/test.npz", PREPROCESS)
    assert labels_of(aligned(data, ("ant", "bee", "cat"))) == [2, 0, 2]
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "class Own(list):\n    classes = ['cat', 'ant']\n"
        "def make():\n    return Own([(torch.zeros(3, 4, 4), k) for k in (0, 1, 0)])\n"
    )
    own = open_data(f"{tmp_path}/own.py:make", PREPROCESS)
    assert labels_of(aligned(own, ("ant", "bee", "cat"))) == [2, 0, 2]


def test_classes_that_the_training_images_lack_are_named(tmp_path: Path) -> None:
    test = opened(f"imagefolder:{make_folder(tmp_path / 'test', {'bee': 1, 'dog': 1})}")
    with pytest.raises(UsageError, match=r"the classes dog are none of the 3 .*\(ant, bee, cat"):
        aligned(test, ("ant", "bee", "cat"))
    with pytest.raises(UsageError, match="2 classes are called bee"):
        aligned(opened(f"imagefolder:{make_folder(tmp_path / 'b', {'bee': 1})}"), ("bee", "bee"))


def test_classes_that_are_only_counted_stay_as_they_are(tmp_path: Path) -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "test.npz", images=images, labels=np.array([0, 2]))
    data = open_data(f"npz:{tmp_path}/test.npz", PREPROCESS)
    assert data.class_names == ("0", "1", "2")
    assert labels_of(aligned(data, ("ant", "bee", "cat"))) == [0, 2]


def test_a_list_of_classes_is_a_name_a_line(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(" cat\r\n\nant bear\n")
    assert class_list(path) == ("cat", "ant bear")
    for content, words in ((b"", "no name"), (b"a\nb\na", "the name a twice"), (b"\xff", "read")):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=words):
            class_list(path)
    with pytest.raises(UsageError, match="cannot be read"):
        class_list(tmp_path / "none.txt")


def test_numbers_are_sorted_as_numbers_and_told(tmp_path: Path) -> None:
    counts = {str(number): 1 for number in range(11)}
    data = opened(f"imagefolder:{make_folder(tmp_path / 'train', counts)}")
    assert data.class_names == tuple(counts)
    assert [int(file.parent.name) for file in data.files] == labels_of(data)
    note = order_note(data.class_names)
    assert note is not None and "11 classes are numbers" in note and "2 before 10" in note
    assert order_note(data.class_names[:10]) is None and order_note(("ant", "bee")) is None
