"""Losses by hand, and trainings by teacher alone and along a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.data.helpers import PREPROCESS, save_images
from trt_layermerge.core.outputs import Kind
from trt_layermerge.data import LabelledData, batches, open_data
from trt_layermerge.data.sources import ArrayData
from trt_layermerge.errors import (
    CorruptInputError,
    DivergedError,
    UnsupportedModelError,
    UsageError,
)
from trt_layermerge.finetune.evaluate import accuracy, known_accuracy
from trt_layermerge.finetune.loop import finetune
from trt_layermerge.finetune.losses import answers, checked, training_loss
from trt_layermerge.finetune.recipe import FinetuneRecipe

MakeNet = Callable[..., nn.Module]

LOGITS = torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, 0.0]])
SOFT = torch.tensor([[2.0, 0.0, 0.0], [0.5, 1.0, -1.0]])
LABELS = torch.tensor([0, 2])
TAUGHT = FinetuneRecipe(epochs=3, batch=10, lr=0.02, distill_weight=1.0, temperature=2.0)


def loss_of(
    mine: Tensor, labels: Tensor | None, theirs: Tensor | None, recipe: FinetuneRecipe
) -> Tensor:
    """Returns the loss of a classifier."""
    taught = None if theirs is None else {"logits": theirs}
    return training_loss({"logits": mine}, labels, taught, recipe, ("classes",))


def unlabelled(tmp_path: Path, count: int = 40) -> ArrayData:
    save_images(tmp_path / "a.npz", count)
    data = open_data(f"npz:{tmp_path / 'a.npz'}", PREPROCESS)
    assert isinstance(data, ArrayData)
    return replace(data, labels=None, class_names=())


def test_the_loss_is_that_of_its_formula() -> None:
    recipe = FinetuneRecipe(distill_weight=0.75, temperature=2.0)
    found = loss_of(LOGITS, LABELS, SOFT, recipe)
    hard = -sum(math.log(row.softmax(0)[y]) for row, y in zip(LOGITS, LABELS, strict=True)) / 2
    p, q = (SOFT / 2).softmax(1), (LOGITS / 2).softmax(1)
    soft = float((p * (p / q).log()).sum()) / 2
    assert float(found) == pytest.approx(0.25 * hard + 0.75 * 4 * soft, rel=1e-6)


def test_labels_count_alone_without_a_teacher_and_not_at_all_beside_a_full_one() -> None:
    alone = loss_of(LOGITS, LABELS, None, FinetuneRecipe(distill_weight=0.0))
    assert torch.equal(alone, F.cross_entropy(LOGITS, LABELS))
    full = FinetuneRecipe(distill_weight=1.0)
    with_labels = loss_of(LOGITS, LABELS, SOFT, full)
    assert torch.equal(with_labels, loss_of(LOGITS, None, SOFT, full))


def test_what_gives_no_tensors_is_told() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> dict[str, str]:
            return {"answer": "none"}

    with pytest.raises(UnsupportedModelError, match="gives no tensors"):
        answers(Silent(), LOGITS)


def test_every_output_is_taught_by_what_it_is() -> None:
    """Mean over outputs: per-pixel KL, relative error, Bernoulli KL; whole numbers are left out."""
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (
        {
            "map": torch.randn(2, 3, 4, 5, generator=generator),
            "size": torch.randn(2, 2, generator=generator),
            "tags": torch.randn(2, 3, generator=generator),
            "index": torch.randint(9, (2, 2), generator=generator),
        }
        for _ in range(2)
    )
    kinds: tuple[Kind, ...] = ("classes", "values", "labels", "indices")
    found = training_loss(mine, None, theirs, FinetuneRecipe(distill_weight=1.0), kinds)
    q, p = (x["map"].permute(0, 2, 3, 1).reshape(-1, 3) / 4 for x in (mine, theirs))
    kl = sum(
        float((a.softmax(0) * (a.log_softmax(0) - b.log_softmax(0))).sum())
        for a, b in zip(p, q, strict=True)
    ) / len(p)
    relative = (mine["size"] - theirs["size"]).square().sum() / theirs["size"].square().sum()
    binary = 0.0
    for a, b in zip(theirs["tags"].flatten() / 4, mine["tags"].flatten() / 4, strict=True):
        for sign in (1, -1):  # yes and no
            pa, pb = (sign * a).sigmoid(), (sign * b).sigmoid()
            binary += float(pa * (pa.log() - pb.log())) / 6
    expected = (16 * kl + float(relative) + 16 * binary) / 3
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_probabilities_are_learnt_as_their_logits_are() -> None:
    mine, theirs = (
        torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    recipe = FinetuneRecipe(distill_weight=1.0, temperature=1.0)
    logits, chances = (
        training_loss({"x": f(mine)}, None, {"x": f(theirs)}, recipe, (kind,))
        for f, kind in ((torch.clone, "labels"), (torch.sigmoid, "probabilities"))
    )
    assert float(chances) == pytest.approx(float(logits), rel=1e-4)


def test_pixels_of_no_class_are_not_learnt() -> None:
    maps = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[[0, 255], [2, 1]]])
    found = training_loss(
        {"out": maps}, labels, None, FinetuneRecipe(distill_weight=0.0), ("classes",)
    )
    known = [maps[0, :, 0, 0], maps[0, :, 1, 0], maps[0, :, 1, 1]]
    hard = [-v.log_softmax(0)[y] for v, y in zip(known, (0, 2, 1), strict=True)]
    assert float(found) == pytest.approx(float(torch.stack(hard).mean()), rel=1e-6)


def test_labels_that_no_output_tells_are_refused() -> None:
    with pytest.raises(UsageError, match="none of the network's outputs is logits"):
        training_loss({"size": LOGITS}, LABELS, None, FinetuneRecipe(), ("values",))


def test_a_loss_that_is_no_number_is_told_by_when_it_comes() -> None:
    assert checked(1.5, 0, 4, TAUGHT) == 1.5
    with pytest.raises(CorruptInputError, match="very first loss"):
        checked(math.nan, 0, 4, TAUGHT)
    with pytest.raises(DivergedError, match="step 2 of epoch 2"):
        checked(math.inf, 5, 4, TAUGHT)


def test_a_teacher_is_enough(tmp_path: Path, make_net: MakeNet) -> None:
    data, student, teacher = unlabelled(tmp_path), make_net(1), make_net(2).eval()
    before = agreement(student, teacher, data)
    result = finetune(student, data, data, replace(TAUGHT, epochs=20), teacher=teacher)
    assert [row.val_accuracy for row in result.history] == [None] * 20
    assert result.val_accuracy is None and known_accuracy(student, data) is None
    assert agreement(student, teacher, data) < 0.3 * before
    with pytest.raises(UsageError, match="these images have none"):
        accuracy(student, data)


@torch.no_grad()
def agreement(student: nn.Module, teacher: nn.Module, data: LabelledData) -> float:
    """Returns the mean squared difference of the probabilities."""
    images = data.batch(torch.arange(len(data)))[0]
    return float(F.mse_loss(student.eval()(images).softmax(1), teacher(images).softmax(1)))


def test_labels_that_are_needed_and_not_there_are_asked_for(
    tmp_path: Path, make_net: MakeNet
) -> None:
    recipe = replace(TAUGHT, distill_weight=0.9)
    with pytest.raises(UsageError, match=r"finetune\.options\.distill_weight to 1"):
        finetune(make_net(), unlabelled(tmp_path), None, recipe, teacher=make_net())


def test_the_schedule_hears_every_step_and_ends_at_one(tmp_path: Path, make_net: MakeNet) -> None:
    data, heard = unlabelled(tmp_path, 20), []
    finetune(
        make_net(),
        data,
        None,
        replace(TAUGHT, epochs=2),
        teacher=make_net(1),
        schedule=heard.append,
    )
    assert heard == [0, 0.25, 0.5, 0.5, 0.75, 1.0, 1.0]
    heard.clear()
    recipe = replace(TAUGHT, epochs=0)
    finetune(make_net(), data, None, recipe, teacher=make_net(1), schedule=heard.append)
    assert heard == [1.0]
    assert all(labels is None for _, labels in batches(data, 10))
