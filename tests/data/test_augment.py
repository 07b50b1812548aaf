"""Augmentations against what they must do by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from tests.data.helpers import PREPROCESS
from trt_layermerge.data import Framing, LabelledData, open_data, split
from trt_layermerge.data.augment import (
    BATCH_KINDS,
    BatchChange,
    affine,
    flip,
    invert,
    mixup,
    parse_augment,
    permute,
    shift,
)
from trt_layermerge.data.images import read_image
from trt_layermerge.data.loader import Batches
from trt_layermerge.data.sources import ArrayData, DatasetData
from trt_layermerge.errors import UsageError
from trt_layermerge.finetune.recipe import preset


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6) -> torch.Tensor:
    return torch.randn(n, 3, 9, 7, generator=generator(1))


def test_shift_gives_only_whole_moves_with_replicated_edges() -> None:
    x = images(40)
    moved = shift(1)(x, generator())
    rows, columns = torch.arange(9), torch.arange(7)
    seen = set()
    for before, after in zip(x, moved, strict=True):
        fits = [
            (dy, dx)
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            if torch.equal(
                before[:, (rows + dy).clamp(0, 8)][:, :, (columns + dx).clamp(0, 6)], after
            )
        ]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) == 9


def test_flip_mirrors_some() -> None:
    x = images(40)
    flipped = flip(0.5)(x, generator())
    same = [torch.equal(a, b) for a, b in zip(x, flipped, strict=True)]
    mirrored = [torch.equal(a.flip(2), b) for a, b in zip(x, flipped, strict=True)]
    assert all(s != m for s, m in zip(same, mirrored, strict=True))
    assert 5 < sum(mirrored) < 35


@pytest.mark.parametrize(
    "identity",
    [affine(0), shift(0), flip(0), permute(0), invert(0), mixup(0)],
)
def test_zero_strength_changes_nothing(identity: BatchChange) -> None:
    # Bilinear sampling at the pixel centres rounds in float32.
    torch.testing.assert_close(identity(images(), generator()), images(), rtol=0, atol=1e-5)


def test_affine_stays_close_and_differs_by_image() -> None:
    ramp = torch.arange(9.0)[:, None] + torch.arange(9.0)
    x = ramp.expand(4, 1, 9, 9).contiguous()
    turned = affine(4)(x, generator())
    # A turn of 4 degrees and 4 % of scale and shear moves corners by less than a pixel each way.
    assert float((turned - x).abs().max()) < 2
    assert len({float(t[0, 0, 4]) for t in turned}) == 4


@pytest.mark.parametrize("kind", list(BATCH_KINDS))
def test_seeded_and_pure(kind: str) -> None:
    step = BATCH_KINDS[kind](2.0 if kind == "shift" else 0.5)
    x = images()
    first, again, other = (step(x, generator(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(x, images())
    assert first.shape == x.shape


def test_permute_reorders_whole_channels() -> None:
    x = images(60)
    seen = set()
    for before, after in zip(x, permute(1)(x, generator()), strict=True):
        order = tuple(
            next(c for c in range(3) if torch.equal(before[c], channel)) for channel in after
        )
        assert sorted(order) == [0, 1, 2]
        seen.add(order)
    assert len(seen) == 6


def test_invert_changes_the_sign_of_some() -> None:
    x = images(40)
    signs = [
        -1 if torch.equal(a, -b) else 1 if torch.equal(a, b) else 0
        for a, b in zip(x, invert(0.5)(x, generator()), strict=True)
    ]
    assert 0 not in signs and 5 < signs.count(-1) < 35


def test_mixup_stays_between_two_images_and_nearer_the_first() -> None:
    x = torch.arange(8.0)[:, None, None, None].expand(8, 3, 4, 4)
    mixed = mixup(0.5)(x, generator())
    values = mixed[:, 0, 0, 0]
    assert torch.equal(mixed, values[:, None, None, None].expand_as(mixed))
    assert not torch.equal(values, torch.arange(8.0))
    reach = torch.maximum(torch.arange(8.0), 7 - torch.arange(8.0)) / 2
    assert bool(((values - torch.arange(8.0)).abs() <= reach).all())


def arrays(count: int = 8, side: int = 12) -> ArrayData:
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=generator(5)).byte()
    return ArrayData(pixels, torch.arange(count), (), PREPROCESS)


def changed(data: LabelledData, *names: str, seed: int = 3, workers: int = 0) -> Tensor:
    """Returns all images of a set, changed, in their order."""
    augmentation = parse_augment(names, data)
    loader = Batches(data, 4, augmentation=augmentation, workers=workers)
    found, labels = zip(*loader.drawn(seed), strict=True)
    return torch.cat(found)[torch.cat(labels).argsort()]


def bytes_of(inputs: Tensor) -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (PREPROCESS.mean, PREPROCESS.std))
    return (inputs * std + mean) * 255


def test_batch_changes_follow_each_other_in_their_order() -> None:
    data = arrays()
    chain = parse_augment(("shift:1", "flip"), data)
    assert chain is not None and not chain.by_image
    x, g = images(), generator(7)
    assert torch.equal(chain.whole(x, None, 7)[0], flip(0.5)(shift(1)(x, g), g))
    assert parse_augment([], data) is None


@pytest.mark.parametrize(
    "name", ["blend:1", "shift", "shift:x", "affine:-1", "noise:nan", "noise:inf", "crop"]
)
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(UsageError, match="known: flip"):
        parse_augment([name], arrays())


@pytest.fixture
def banner(tmp_path: Path) -> LabelledData:
    """Returns 40 copies of a wide image, red at both ends, where evaluation never looks."""
    pixels = np.full((16, 64, 3), 100, np.uint8)
    pixels[:, :16] = pixels[:, -16:] = (255, 0, 0)
    (tmp_path / "d" / "a").mkdir(parents=True)
    for i in range(40):
        Image.fromarray(pixels).save(tmp_path / "d" / "a" / f"{i:02}.png")
    return open_data(f"imagefolder:{tmp_path / 'd'}", PREPROCESS, framing=Framing((16, 16)))


def test_a_crop_is_taken_from_the_whole_image(banner: LabelledData) -> None:
    centre, labels = banner.batch(torch.arange(40))
    assert labels is not None
    torch.testing.assert_close(bytes_of(centre), torch.full_like(centre, 100.0))
    augmentation = parse_augment(("crop:0.08",), banner)
    (cropped, _), *_ = Batches(banner, 40, augmentation=augmentation).drawn(0)
    red = (bytes_of(cropped)[:, 1] < 50).flatten(1).any(1)
    # Half of the width is red, and parts are small: the centre crop would never show any.
    assert 15 < int(red.sum()) < 40


def test_a_crop_is_torchvisions(banner: LabelledData) -> None:
    augmentation = parse_augment(("crop:0.3",), banner)
    assert augmentation is not None
    found, label = augmentation.image(banner, 0, seed=11)
    assert label == 0
    with torch.random.fork_rng([]):
        torch.manual_seed(11)
        pixels = v2.RandomResizedCrop((16, 16), (0.3, 1.0))(read_image(banner.files[0]))
    expected = PREPROCESS(np.asarray(pixels)[None])[0]
    np.testing.assert_array_equal(found.numpy(), expected)


def test_erasing_leaves_noise_in_rectangles() -> None:
    data, plain = arrays(40), arrays(40).batch(torch.arange(40))[0]
    erased = changed(data, "erase:0.5")
    holes = (erased != plain).all(1)
    hit = holes.flatten(1).any(1)
    assert 8 < int(hit.sum()) < 32
    for hole, image in zip(holes[hit], erased[hit], strict=True):
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns)
        assert len(image[:, hole].unique()) == image[:, hole].numel()  # noise, no colour


def test_jitter_changes_saturation_too() -> None:
    grey = ArrayData(torch.full((30, 3, 4, 4), 128).byte(), torch.arange(30), (), PREPROCESS)
    red = torch.tensor([200, 100, 100]).byte()[:, None, None].expand(30, 3, 4, 4)
    coloured = ArrayData(red.clone(), torch.arange(30), (), PREPROCESS)
    greys, reds = (bytes_of(changed(data, "jitter:0.4")) for data in (grey, coloured))
    spread = reds[:, 0, 0, 0] / reds[:, 1, 0, 0]
    assert float(spread.min()) < 1.7 < 2.3 < float(spread.max())  # without, all are 2
    torch.testing.assert_close(greys[:, 0], greys[:, 1], rtol=0, atol=1e-3)
    assert float(greys.min()) < 100 and float(greys.max()) > 150


def test_randaugment_changes_bytes_and_knows_its_strength() -> None:
    data, plain = arrays(40), arrays(40).batch(torch.arange(40))[0]
    found = changed(data, "randaugment:5")
    assert int((found != plain).flatten(1).any(1).sum()) > 20
    back = bytes_of(found)
    torch.testing.assert_close(back, back.round(), rtol=0, atol=1e-3)
    augmentation = parse_augment(("randaugment:5",), data)
    assert augmentation is not None
    assert (augmentation.pixels[0].num_ops, augmentation.pixels[0].magnitude) == (2, 15)
    with pytest.raises(UsageError, match="from 0 to 10"):
        parse_augment(("randaugment:11",), data)


PAPER = ("crop:0.08", "flip", "randaugment:5", "jitter:0.4", "erase:0.25")


def test_the_papers_recipe_can_be_had_of_parts_of_folders(banner: LabelledData) -> None:
    assert preset("mobilenet_v2_1.4").augment == PAPER
    part, _ = split(banner, 30, seed=0)
    augmentation = parse_augment(PAPER, part)
    assert augmentation is not None and augmentation.crop is not None
    assert [len(s) for s in (augmentation.pixels, augmentation.normal, augmentation.batch)] == [
        2,
        1,
        1,
    ]
    (found, labels), *_ = Batches(part, 30, augmentation=augmentation).drawn(1)
    assert found.shape == (30, 3, 16, 16) and found.dtype == torch.float32
    assert labels is not None and labels.tolist() == [0] * 30
    assert int((found != found[0]).flatten(1).any(1).sum()) == 29


def test_the_number_of_processes_that_load_changes_no_bit() -> None:
    data = arrays(20)
    alone = changed(data, *PAPER)
    assert torch.equal(alone, changed(data, *PAPER, workers=2))
    assert not torch.equal(alone, changed(data, *PAPER, seed=4))


def test_what_needs_bytes_is_refused_to_others() -> None:
    data = DatasetData([(torch.zeros(3, 4, 4), 0)] * 3, "mine", ())
    for name in ("crop:0.5", "jitter:0.1", "erase:0.1", "randaugment:5"):
        with pytest.raises(UsageError, match="8-bit images, and a Dataset of your own"):
            parse_augment((name,), data)
    assert parse_augment(("flip", "shift:1"), data) is not None


def squares(count: int = 12, side: int = 24) -> ArrayData:
    """Returns images whose pixels are 100 times their class, 0 to 2: squares on a ground."""
    maps = torch.zeros(count, side, side, dtype=torch.int64)
    for i in range(count):
        maps[i, 3 + i % 5 : 14, 2 : 11 + i % 3] = 1
        maps[i, 15:20, 6 + i % 7 : 21] = 2
    pixels = (100 * maps).byte()[:, None].expand(-1, 3, -1, -1).contiguous()
    return ArrayData(pixels, maps, (), PREPROCESS)


@pytest.mark.parametrize("name", ["flip", "shift:3", "affine:12", "crop:0.4"])
def test_labels_of_pixels_move_as_the_pixels_do(name: str) -> None:
    data = squares()
    loader = Batches(data, 6, augmentation=parse_augment([name, "invert:0"], data), workers=0)
    inputs, labels = zip(*loader.drawn(5), strict=True)
    shown, maps = bytes_of(torch.cat(inputs)) / 100, torch.cat(labels)
    assert maps.dtype == torch.int64 and maps.shape == (12, 24, 24)
    # Where a pixel's neighbours are of its class, it shows the class; elsewhere they mix.
    around = torch.nn.functional.pad(maps[:, None].float(), (2,) * 4, mode="replicate")
    largest = torch.nn.functional.max_pool2d(around, 5, 1)[:, 0]
    least = -torch.nn.functional.max_pool2d(-around, 5, 1)[:, 0]
    inside = largest == least
    assert inside.float().mean() > 0.3 and maps[inside].unique().tolist() == [0, 1, 2]
    for channel in shown.unbind(1):
        torch.testing.assert_close(channel[inside], maps[inside].float(), atol=0.05, rtol=0)
    untouched = torch.stack(sorted(data.labels, key=lambda m: m.sum()))  # type: ignore[arg-type]
    assert not torch.equal(torch.stack(sorted(maps, key=lambda m: m.sum())), untouched)


def test_pixels_of_no_class_stay_so_and_colours_leave_maps_alone() -> None:
    data = squares()
    assert data.labels is not None
    data.labels[:, :4] = 255
    loader = Batches(data, 12, augmentation=parse_augment(["affine:10"], data))
    ((_, moved),) = loader.drawn(1)
    assert moved is not None and moved.unique().tolist() == [0, 1, 2, 255]
    names = ["noise:0.1", "permute:1", "jitter:0.4", "erase:1"]
    ((_, same),) = Batches(data, 12, augmentation=parse_augment(names, data), workers=0).drawn(None)
    assert same is not None and torch.equal(same, data.labels)


def test_a_change_whose_moves_nobody_knows_is_refused_for_labels_of_pixels() -> None:
    with pytest.raises(UsageError, match=r"randaugment moves pixels .* name other changes"):
        parse_augment(["randaugment:5"], squares())
