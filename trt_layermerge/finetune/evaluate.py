"""What a classifier answers, and how often it is right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trt_layermerge.core.labels import check_labels
from trt_layermerge.data.loader import Images, pairs
from trt_layermerge.data.sets import LabelledData
from trt_layermerge.errors import CorruptInputError, UnsupportedModelError, UsageError

BATCH = 100
"""Images that are evaluated at once: enough for any processor, little for loading processes."""


class NotANumberError(CorruptInputError):
    """A network whose answers or loss are not finite numbers from the start."""


def accuracy(model: nn.Module, data: Images, batch: int = BATCH) -> float:
    """Returns the fraction of images whose largest logit is that of the label.

    Args:
        model: Gives logits ``(N, classes)``; it is evaluated where its parameters are.
        data: A set of images, or any iterable of batches ``(images, labels)``.
        batch: Images that are evaluated at once; a loader's batches stay as they are.

    Raises:
        UsageError: If the images have no labels, or there are none.
        UnsupportedModelError: If the outputs are not ``(N, K)``.
        CorruptInputError: If an output is NaN, or a label is beyond the classes.
    """
    found = known_accuracy(model, data, batch)
    if found is None:
        raise UsageError("accuracy needs labels, and these images have none; name some that do")
    return found


def known_accuracy(model: nn.Module, data: Images | None, batch: int = BATCH) -> float | None:
    """Returns the accuracy as a fraction, or None where there are no images or no labels.

    Args:
        model: Gives logits ``(N, classes)``; it is evaluated where its parameters are.
        data: As for ``accuracy``; or None.
        batch: Images that are evaluated at once; a loader's batches stay as they are.

    Raises:
        UsageError: If a loader gives no images.
        UnsupportedModelError: If the outputs are not ``(N, K)``.
        CorruptInputError: If an output is NaN, or a label is beyond the classes.
    """
    if data is None or (isinstance(data, LabelledData) and not data.labelled):
        return None
    right, images = 0, 0
    for guess, labels in _guesses(model, data, batch):
        if labels is None:
            return None
        right += int((guess == labels.to(guess.device)).sum())
        images += len(guess)
    if not images:
        raise UsageError("accuracy needs images, and the loader gives none; give one anew")
    return right / images


def predict(model: nn.Module, data: LabelledData, batch: int = BATCH) -> NDArray[np.int64]:
    """Returns the predicted label of every image, ``(N,)``, in order.

    Args:
        model: Gives logits ``(N, classes)``; it is evaluated where its parameters are.
        data: The images; labels are not needed.
        batch: Images that are evaluated at once.

    Raises:
        UnsupportedModelError: If the outputs are not ``(N, K)``.
        CorruptInputError: If an output is NaN, or a label is beyond the classes.
    """
    found = torch.cat([guess for guess, _ in _guesses(model, data, batch)])
    return np.asarray(found.numpy(), dtype=np.int64)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a network into eval mode without gradients, and every module's mode back after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _guesses(model: nn.Module, data: Images, batch: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yields predicted and true labels, on the CPU."""
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    for images, labels in pairs(data, batch):
        with evaluating(model):
            logits = model(images.to(device))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UnsupportedModelError(
                f"accuracy needs outputs (N, classes), but the network gives {shape}; "
                "only classifiers have one"
            )
        if torch.isnan(logits).any():
            raise NotANumberError(
                "the network's outputs are not numbers (NaN); its weights or the images are damaged"
            )
        if labels is not None:
            check_labels(int(labels.min()), int(labels.max()), logits.shape[1])
        yield logits.argmax(1).cpu(), labels
