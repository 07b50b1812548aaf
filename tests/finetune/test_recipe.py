"""Recipes: the published figures, the schedule by hand, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trt_layermerge.errors import UsageError
from trt_layermerge.finetune.recipe import PRESETS, FinetuneRecipe, learning_rate, preset


def test_published_recipes() -> None:
    resnet = preset("resnet34")
    assert (resnet.epochs, resnet.optimiser, resnet.lr, resnet.momentum) == (
        90,
        "sgd",
        1.024,
        0.875,
    )
    assert (resnet.weight_decay, resnet.decay_bn_bias, resnet.batch) == (3.05e-5, False, 1024)
    assert (resnet.warmup_epochs, resnet.label_smoothing, resnet.amp) == (8, 0.1, True)
    small, large = preset("mobilenet_v2_1.0"), preset("mobilenet_v2_1.4")
    assert (small.epochs, small.lr, small.nesterov, small.momentum) == (180, 0.05, True, 0.9)
    assert (small.weight_decay, small.batch, small.warmup_epochs) == (1e-5, 256, 0)
    assert (large.lr, large.label_smoothing, large.grad_clip) == (0.1, 0.1, 5.0)
    entry = preset("importance")
    assert (entry.epochs, entry.lr, entry.weight_decay, entry.batch) == (1, 0.1, 1e-5, 256)
    assert all(r.distill_weight == 0 for n, r in PRESETS.items() if n != "short")


def test_what_cannot_be_expressed_is_refused() -> None:
    with pytest.raises(UsageError, match="diffusion"):
        preset("ddpm")
    with pytest.raises(UsageError, match="known: short"):
        preset("resnet35")


@pytest.mark.parametrize("name", list(PRESETS))
def test_json_round_trip(name: str) -> None:
    assert FinetuneRecipe.from_json(PRESETS[name].to_json()) == PRESETS[name]


@pytest.mark.parametrize(
    "field",
    [
        {"epochs": -1},
        {"batch": 0},
        {"optimiser": "adam"},
        {"lr": 0.0},
        {"lr": math.nan},
        {"momentum": 1.0},
        {"optimiser": "sgd", "momentum": 0.0},
        {"weight_decay": -1.0},
        {"label_smoothing": 1.0},
        {"distill_weight": 1.5},
        {"temperature": 0.0},
        {"ema_decay": 1.0},
        {"grad_clip": 0.0},
        {"bn": "drop"},
        {"learning_rate": 1.0},
        {"feature_weight": 1.0},
        {"lr": "fast"},
    ],
)
def test_unusable_fields_are_named(field: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{list(field)[-1]}|nesterov=True|str"):
        FinetuneRecipe.from_json(field)


def test_schedule_by_hand() -> None:
    recipe = FinetuneRecipe(epochs=3, lr=0.8, warmup_epochs=1)
    rates = [learning_rate(recipe, step, 4) for step in range(12)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8], rel=1e-12)
    assert rates[4] == pytest.approx(0.8, rel=1e-12)
    assert rates[8] == pytest.approx(0.4, rel=1e-12)
    assert rates[11] == pytest.approx(0.4 * (1 + math.cos(math.pi * 7 / 8)), rel=1e-12)
    assert learning_rate(recipe, 12, 4) == pytest.approx(0, abs=1e-12)


def test_mixed_images_have_no_labels() -> None:
    FinetuneRecipe(augment=("mixup:0.5",), distill_weight=1.0)
    with pytest.raises(UsageError, match="mixup"):
        FinetuneRecipe(augment=("mixup:0.5",), distill_weight=0.9)
