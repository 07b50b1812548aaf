"""What a training lowers: the error against labels, and against the teacher's answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trt_layermerge.core.agreement import VOID, check_labels
from trt_layermerge.core.inputs import parts_of
from trt_layermerge.core.outputs import Kind, judged_by, named
from trt_layermerge.errors import DivergedError, UnsupportedModelError, UsageError
from trt_layermerge.finetune.evaluate import NotANumberError, evaluating
from trt_layermerge.finetune.recipe import FinetuneRecipe


def taught(teacher: nn.Module, images: Any) -> dict[str, Tensor]:
    """Returns the teacher's outputs by name, in float32 at least."""
    with evaluating(teacher):
        return answers(teacher, images)


def answers(network: nn.Module, images: Any) -> dict[str, Tensor]:
    """Returns a network's outputs by name, in float32 at least.

    Raises:
        UnsupportedModelError: If it puts out no tensors.
    """
    found = {name: _single(value) for name, value in named(network(*parts_of(images))).items()}
    if found:
        return found
    raise UnsupportedModelError(
        "the network gives no tensors that could be trained; train the relaxed network in a loop "
        "of your own"
    )


def training_loss(
    mine: Mapping[str, Tensor],
    labels: Tensor | None,
    theirs: Mapping[str, Tensor] | None,
    recipe: FinetuneRecipe,
    kinds: Sequence[Kind],
) -> Tensor:
    """Returns (1 − w) · error against labels + w · distance from the teacher, w ``distill_weight``.

    Without a teacher w is 0. Against labels it is the cross-entropy of the first output that they
    tell the classes of. The distance is the mean over the outputs: of classes, T² · KL(teacher ‖
    student) at temperature T (Hinton et al., 2015), mean over images and pixels; of labels the
    same of each; of values Σ (y' − y)² / Σ y². Whole numbers are not trained.

    Args:
        mine: Outputs of the student by name.
        labels: ``(N,)``, or of every pixel ``(N, H, W)``; None where only the teacher counts.
        theirs: Outputs of the teacher; None without one.
        recipe: Weights and temperature.
        kinds: What each output is (``core.outputs``).

    Raises:
        UsageError: If labels are to be learnt and no output tells their classes.
        CorruptInputError: If a label is beyond the classes.
    """
    weight = 0.0 if theirs is None else recipe.distill_weight
    loss = next(iter(mine.values())).new_zeros(())
    if labels is not None:
        told = judged_by(labels, mine, dict(zip(mine, kinds, strict=True)))
        if told is not None:
            check_labels(labels, mine[told].shape[1])
        if weight < 1:
            loss = (1 - weight) * _cross_entropy(mine, told, labels, recipe)
    if theirs is not None and weight > 0:
        pairs = zip(kinds, mine.values(), theirs.values(), strict=True)
        parts = [_distance(k, m, t, recipe.temperature) for k, m, t in pairs if k != "indices"]
        loss = loss + weight * (parts[0] if len(parts) == 1 else torch.stack(parts).mean())
    return loss


def _cross_entropy(
    mine: Mapping[str, Tensor], told: str | None, labels: Tensor, recipe: FinetuneRecipe
) -> Tensor:
    if told is None:
        raise UsageError(
            f"labels {tuple(labels.shape)} are given, and none of the network's outputs is logits "
            "of their classes; let the original network alone teach (distill_weight of 1), or say "
            "what the outputs are for (task)"
        )
    ignored = VOID if labels.ndim > 1 else -100
    return F.cross_entropy(
        mine[told], labels, label_smoothing=recipe.label_smoothing, ignore_index=ignored
    )


def _distance(kind: Kind, mine: Tensor, theirs: Tensor, t: float) -> Tensor:
    if kind == "values":
        power = theirs.square().sum()
        return (mine - theirs).square().sum() / power.clamp_min(torch.finfo(power.dtype).tiny)
    if kind == "labels":
        wanted = (theirs / t).sigmoid()
        least = F.binary_cross_entropy_with_logits(theirs / t, wanted)
        return t * t * (F.binary_cross_entropy_with_logits(mine / t, wanted) - least)
    if kind == "probabilities":
        own, wanted = mine.float(), theirs.float()
        return F.binary_cross_entropy(own, wanted) - F.binary_cross_entropy(wanted, wanted)
    own, wanted = F.log_softmax(mine / t, 1), F.log_softmax(theirs / t, 1)
    distance = F.kl_div(own, wanted, reduction="batchmean", log_target=True)
    return t * t * distance / math.prod(mine.shape[2:])


def checked(loss: float, step: int, steps: int, recipe: FinetuneRecipe) -> float:
    """Returns a loss that is finite.

    Args:
        loss: The loss.
        step: Its number in the whole training, from 0.
        steps: Steps of an epoch.
        recipe: How it is trained, for the message.

    Raises:
        NotANumberError: If the very first one is not.
        DivergedError: If a later one is not.
    """
    if math.isfinite(loss):
        return loss
    if step == 0:
        raise NotANumberError(
            "the very first loss is not finite: the start's weights or the training images hold "
            "NaN or infinite values; check the model and the preprocessing"
        )
    raise DivergedError(
        f"the loss is no longer finite at step {step % steps + 1} of epoch {step // steps + 1}: "
        f"the training diverged at lr {recipe.lr:g}; lower lr, set grad_clip, or lengthen warm-up"
    )


def _single(values: Tensor) -> Tensor:
    """Returns values of half precision in float32, and others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
