"""The script of ``examples/lite0``: names of weights, and photographs that stay in one split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from benchmarks.bm_lite0 import prepare
from trt_layermerge.errors import CorruptInputError, UsageError

lite0 = prepare()
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def checkpoint_names() -> Iterator[str]:
    """Yields the names of the published checkpoint, in its order."""

    def pair(conv: str, norm: str) -> Iterator[str]:
        yield f"{conv}.weight"
        yield from (f"{norm}.{leaf}" for leaf in NORM)

    yield from pair("_conv_stem", "_bn0")
    for number in range(16):
        block = f"_blocks.{number}."
        if number:
            yield from pair(f"{block}_expand_conv", f"{block}_bn0")
        yield from pair(f"{block}_depthwise_conv", f"{block}_bn1")
        yield from pair(f"{block}_project_conv", f"{block}_bn2")
    yield from pair("_conv_head", "_bn1")
    yield from ("_fc.weight", "_fc.bias")


def test_every_weight_gets_the_name_of_its_place() -> None:
    names = list(checkpoint_names())
    state = {name: torch.tensor(place) for place, name in enumerate(names)}
    network = list(timm.create_model("tf_efficientnet_lite0").state_dict())
    assert {name: int(place) for name, place in lite0.renamed(state).items()} == {
        name: place for place, name in enumerate(network)
    }


@pytest.mark.parametrize("name", ["conv1.weight", "_blocks.16._bn1.bias", "_blocks.0._bn0.bias"])
def test_weights_of_another_network_are_refused(name: str) -> None:
    with pytest.raises(CorruptInputError, match="no weights of EfficientNet-Lite0"):
        lite0.renamed({name: torch.zeros(1)})


def saved(path: Path, size: tuple[int, int] = (48, 40), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_network_that_does_not_know_the_photographs_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    shown = {name: saved(tmp_path / f"{name}.png") for name in lite0.KNOWN}
    with pytest.raises(CorruptInputError, match="their names are mistaken"):
        lite0.check(network, shown)
    with pytest.raises(UsageError, match="there is no chelsea"):
        lite0.check(network, {})


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("wallpapers/Kite/contents/images/2560x1600.jpg", "Kite"),
        ("mate/abstract/Elephants_3840x2160.jpg", "Elephants"),
        ("gnome/wood-d.webp", "wood"),
        ("data/motorcycle_left.png", "motorcycle"),
        ("data/chelsea.png", "chelsea"),
    ],
)
def test_sizes_and_sides_of_a_photograph_have_one_name(file: str, name: str) -> None:
    assert lite0.photograph_of(Path(file)) == name


def test_no_photograph_is_in_two_splits(tmp_path: Path) -> None:
    folder = tmp_path / "found"
    for number in range(12):
        for size in ((48, 40), (64, 56)):
            saved(folder / f"p{number}_{size[0]}x{size[1]}.png", size, number)
    for name in ("chelsea", "coffee", "wood-l", "small"):
        saved(folder / f"{name}.png", (30, 60) if name == "small" else (48, 40))
    found = lite0.photographs_in([folder], 32)
    assert found["p3"].name == "p3_64x56.png"
    lite0.write_crops(tmp_path, found, 32, 3, seed=0)
    splits = {s: {p.name for p in (tmp_path / s).iterdir()} for s in ("train", "val", "test")}
    assert {name: len(names) for name, names in splits.items()} == {"train": 7, "val": 2, "test": 6}
    assert len(set.union(*splits.values())) == 15  # so that no two share one
    assert {"chelsea", "coffee"} <= splits["test"]
    assert "wood" in splits["train"]
    files = sorted(tmp_path.glob("t*/*/*.jpg"))
    with Image.open(files[0]) as image:
        assert image.size == (32, 32)
    before = [file.read_bytes() for file in files]
    lite0.write_crops(tmp_path, found, 32, 3, seed=0)
    assert [file.read_bytes() for file in files] == before
