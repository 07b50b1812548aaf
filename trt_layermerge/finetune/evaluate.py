"""What a classifier answers, and how often it is right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trt_layermerge.errors import CorruptInputError, UnsupportedModelError, UsageError
from trt_layermerge.finetune.data import LabelledData, batches


class NotANumberError(CorruptInputError):
    """A network whose answers or loss are not finite numbers from the start."""


def accuracy(model: nn.Module, data: LabelledData, batch: int = 500) -> float:
    """Returns the fraction of images whose largest logit is that of the label.

    Raises:
        UsageError: If the images have no labels.
        UnsupportedModelError: If the outputs are not ``(N, K)``.
        CorruptInputError: If an output is NaN, or a label is beyond the classes.
    """
    if not data.labelled:
        raise UsageError("accuracy needs labels, and these images have none; name some that do")
    pairs = _guesses(model, data, batch)
    return sum(int((g == label).sum()) for g, label in pairs if label is not None) / len(data)


def known_accuracy(model: nn.Module, data: LabelledData | None) -> float | None:
    """Returns the accuracy, or None where there are no images or no labels. Raises likewise."""
    return accuracy(model, data) if data is not None and data.labelled else None


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Checks that every label is one of the network's classes.

    Raises:
        CorruptInputError: If one is not.
    """
    classes, largest = logits.shape[1], int(labels.max())
    if largest >= classes:
        raise CorruptInputError(
            f"an image has the label {largest}, but the network tells {classes} classes apart, "
            "counted from 0; number the labels (or the class folders) as the network does"
        )


def predict(model: nn.Module, data: LabelledData, batch: int = 500) -> NDArray[np.int64]:
    """Returns the predicted label of every image, ``(N,)``, in order. Raises as ``accuracy``."""
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


def _guesses(
    model: nn.Module, data: LabelledData, batch: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yields predicted and true labels, on the CPU."""
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    for images, labels in batches(data, batch):
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
            check_labels(labels, logits)
        yield logits.argmax(1).cpu(), labels
