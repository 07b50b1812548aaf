"""RandAugment by timm: seeded, in 8 bits, and refused where it cannot be had."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.finetune.helpers import PREPROCESS
from trt_layermerge.errors import MissingDependencyError, UsageError
from trt_layermerge.finetune.augment import parse_augment
from trt_layermerge.finetune.data import LabelledData, batches, preprocess_of, split
from trt_layermerge.finetune.randaugment import RandAugment
from trt_layermerge.finetune.recipe import preset


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)


def drawn(seed: int, magnitude: float = 5.0) -> torch.Tensor:
    augment = RandAugment(magnitude, PREPROCESS)
    images = torch.from_numpy(PREPROCESS(pixels()))
    return augment(images, torch.Generator().manual_seed(seed))


def test_bytes_come_back_exactly() -> None:
    pytest.importorskip("timm")
    augment = RandAugment(5, PREPROCESS)
    np.testing.assert_array_equal(augment._bytes(torch.from_numpy(PREPROCESS(pixels()))), pixels())


def test_a_seed_gives_the_same_images_whatever_else_is_drawn() -> None:
    pytest.importorskip("timm")
    first = drawn(1)
    random.random()
    state, legacy = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert torch.equal(drawn(1), first)
    assert not torch.equal(drawn(2), first)
    assert random.getstate() == state
    np.testing.assert_array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002
    original = torch.from_numpy(PREPROCESS(pixels()))
    changed = [not torch.equal(a, b) for a, b in zip(first, original, strict=True)]
    assert sum(changed) >= 3 and first.shape == original.shape and first.dtype == torch.float32
    # Each is made of bytes again.
    back = (
        first * torch.tensor(PREPROCESS.std)[:, None, None]
        + torch.tensor(PREPROCESS.mean)[:, None, None]
    ) * 255
    torch.testing.assert_close(back, back.round(), rtol=0, atol=1e-3)


def test_by_name_on_a_part_of_a_set(make_data: Callable[..., LabelledData]) -> None:
    pytest.importorskip("timm")
    part, _ = split(make_data(40), 30, seed=0)
    assert preprocess_of(part) == PREPROCESS
    augment = parse_augment(("flip", "randaugment:9"), preprocess_of(part))
    one, same = (
        torch.cat([x for x, _ in batches(part, 10, seed=3, augment=augment)]) for _ in range(2)
    )
    assert torch.equal(one, same)
    plain = torch.cat([x for x, _ in batches(part, 10, seed=3)])
    assert not torch.equal(one, plain)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="8-bit"):
        parse_augment(("randaugment:5",))
    with pytest.raises(UsageError, match="from 0 to 10"):
        parse_augment(("randaugment:11",), PREPROCESS)
    with pytest.raises(UsageError, match="not understood"):
        parse_augment(("randaugment",), PREPROCESS)
    assert preprocess_of([]) is None
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'trt-layermerge\[zoo\]'"):
        parse_augment(preset("mobilenet_v2_1.4").augment, PREPROCESS)
