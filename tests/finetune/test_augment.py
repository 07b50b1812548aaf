"""Augmentations against what they must do by hand."""

from __future__ import annotations

import pytest
import torch

from trt_layermerge.errors import UsageError
from trt_layermerge.finetune.augment import (
    KINDS,
    Augment,
    affine,
    crop,
    erase,
    flip,
    invert,
    mixup,
    parse_augment,
    permute,
    shift,
)


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
    flipped = flip()(x, generator())
    same = [torch.equal(a, b) for a, b in zip(x, flipped, strict=True)]
    mirrored = [torch.equal(a.flip(2), b) for a, b in zip(x, flipped, strict=True)]
    assert all(s != m for s, m in zip(same, mirrored, strict=True))
    assert 5 < sum(mirrored) < 35


@pytest.mark.parametrize(
    "identity",
    [affine(0), erase(0), shift(0), flip(0), permute(0), invert(0), mixup(0)],
)
def test_zero_strength_changes_nothing(identity: Augment) -> None:
    # Bilinear sampling at the pixel centres rounds in float32.
    torch.testing.assert_close(identity(images(), generator()), images(), rtol=0, atol=1e-5)


def test_affine_stays_close_and_differs_by_image() -> None:
    ramp = torch.arange(9.0)[:, None] + torch.arange(9.0)
    x = ramp.expand(4, 1, 9, 9).contiguous()
    turned = affine(4)(x, generator())
    # A turn of 4 degrees and 4 % of scale and shear moves corners by less than a pixel each way.
    assert float((turned - x).abs().max()) < 2
    assert len({float(t[0, 0, 4]) for t in turned}) == 4


def test_crop_shows_a_part() -> None:
    x = torch.linspace(0, 1, 16).expand(50, 1, 16, 16).contiguous()
    seen = crop(0.25)(x, generator())
    span = seen[:, 0, 0, -1] - seen[:, 0, 0, 0]
    assert float(span.max()) <= 1 and float(span.min()) < 0.7
    assert float(seen.min()) >= 0 and float(seen.max()) <= 1


def test_erase_sets_rectangles_to_zero() -> None:
    x = torch.ones(30, 3, 16, 16)
    erased = erase(0.5)(x, generator())
    holes = (erased == 0).all(1)
    hit = holes.flatten(1).any(1)
    assert 5 < int(hit.sum()) < 25
    for hole in holes[hit]:
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns)


@pytest.mark.parametrize("kind", list(KINDS))
def test_seeded_and_pure(kind: str) -> None:
    step = parse_augment([f"{kind}:0.5" if kind != "shift" else "shift:2"])
    assert step is not None
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


def test_names() -> None:
    assert parse_augment([]) is None
    chain = parse_augment(("shift:1", "flip"))
    assert chain is not None
    g = generator()
    expected = flip()(shift(1)(images(), g), g)
    assert torch.equal(chain(images(), generator()), expected)
    for wrong in ("blend:1", "shift", "shift:x", "affine:-1", "noise:nan", "noise:inf"):
        with pytest.raises(UsageError, match="known: shift"):
            parse_augment([wrong])
