"""What a training lowers: labels, the teacher's answers, and the values within both networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trt_layermerge.errors import DivergedError
from trt_layermerge.finetune.evaluate import NotANumberError, evaluating
from trt_layermerge.finetune.recipe import FinetuneRecipe


def taught(teacher: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Returns the teacher's logits, and what else it puts out, in float32 at least."""
    with evaluating(teacher):
        values = teacher(images)
    values = values if isinstance(values, tuple) else (values,)
    return tuple(_single(v) for v in values)


def training_loss(
    mine: Sequence[Tensor],
    labels: Tensor | None,
    theirs: Sequence[Tensor],
    recipe: FinetuneRecipe,
) -> Tensor:
    """Returns (1 − w) · cross-entropy + w · T² · KL(teacher ‖ student) + v · feature error.

    The divergence is taken at temperature T (Hinton et al., 2015), w is ``distill_weight``, 0
    without a teacher, and v is ``feature_weight``. Cross-entropy is left out where w is 1.

    Args:
        mine: Logits ``(N, K)`` of the student, then its features.
        labels: ``(N,)``; None where only the teacher counts.
        theirs: The same of the teacher; empty without one.
        recipe: Weights and temperature.
    """
    logits, weight = _single(mine[0]), recipe.distill_weight if theirs else 0.0
    loss = logits.new_zeros(())
    if labels is not None and weight < 1:
        smoothing = recipe.label_smoothing
        loss = (1 - weight) * F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if weight > 0:
        t = recipe.temperature
        own, wanted = F.log_softmax(logits / t, 1), F.log_softmax(theirs[0] / t, 1)
        distance = F.kl_div(own, wanted, reduction="batchmean", log_target=True)
        loss = loss + weight * t * t * distance
    if recipe.feature_weight > 0 and len(theirs) > 1:
        loss = loss + recipe.feature_weight * feature_error(mine[1:], theirs[1:])
    return loss


def feature_error(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Returns the mean over features of their mean squared error over the teacher's variance."""
    errors = [
        (_single(m) - t).square().mean() / t.var().clamp_min(torch.finfo(t.dtype).tiny)
        for m, t in zip(mine, theirs, strict=True)
    ]
    return torch.stack(errors).mean()


def checked(loss: float, step: int, steps: int, recipe: FinetuneRecipe) -> float:
    """Returns a loss that is finite.

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
