"""What a training lowers: the error against labels, and against the teacher's answers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trt_layermerge.errors import DivergedError, UnsupportedModelError
from trt_layermerge.finetune.evaluate import NotANumberError, evaluating
from trt_layermerge.finetune.recipe import FinetuneRecipe


def taught(teacher: nn.Module, images: Tensor) -> Tensor:
    """Returns the teacher's logits ``(N, K)``, in float32 at least."""
    with evaluating(teacher):
        return _single(logits_of(teacher(images)))


def logits_of(output: object) -> Tensor:
    """Returns what a network put out. Raises ``UnsupportedModelError`` if it is no logits."""
    if isinstance(output, Tensor) and output.ndim > 1:
        return output
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise UnsupportedModelError(
        f"the network gives {shape}, and logits (N, classes) are trained here; train the relaxed "
        "network in a loop of your own"
    )


def training_loss(
    mine: Tensor, labels: Tensor | None, theirs: Tensor | None, recipe: FinetuneRecipe
) -> Tensor:
    """Returns (1 − w) · cross-entropy + w · T² · KL(teacher ‖ student).

    The divergence is taken at temperature T (Hinton et al., 2015), w is ``distill_weight``, 0
    without a teacher. Cross-entropy is left out where w is 1.

    Args:
        mine: Logits ``(N, K)`` of the student.
        labels: ``(N,)``; None where only the teacher counts.
        theirs: Logits of the teacher; None without one.
        recipe: Weights and temperature.
    """
    logits, weight = _single(mine), 0.0 if theirs is None else recipe.distill_weight
    loss = logits.new_zeros(())
    if labels is not None and weight < 1:
        smoothing = recipe.label_smoothing
        loss = (1 - weight) * F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if theirs is not None and weight > 0:
        t = recipe.temperature
        own, wanted = F.log_softmax(logits / t, 1), F.log_softmax(theirs / t, 1)
        distance = F.kl_div(own, wanted, reduction="batchmean", log_target=True)
        loss = loss + weight * t * t * distance
    return loss


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
