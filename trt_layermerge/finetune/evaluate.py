"""What a classifier answers, and how often it is right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trt_layermerge.core.agreement import check_labels, right
from trt_layermerge.core.inputs import mapped, parts_of
from trt_layermerge.core.outputs import Kind, Kinds, judged_by, kinds_of, named
from trt_layermerge.data.loader import Images, pairs
from trt_layermerge.data.sets import LabelledData
from trt_layermerge.errors import CorruptInputError, UnsupportedModelError, UsageError

BATCH = 100
"""Images that are evaluated at once: enough for any processor, little for loading processes."""


class NotANumberError(CorruptInputError):
    """A network whose answers or loss are not finite numbers from the start."""


def accuracy(model: nn.Module, data: Images, kinds: Sequence[Kind] | None = None) -> float:
    """Returns the fraction of images, or of pixels, whose largest logit is that of the label.

    Args:
        model: It is evaluated where its parameters are.
        data: A set of images, or any iterable of batches ``(images, labels)``.
        kinds: What each output is (``core.outputs``); by default what their shapes tell.

    Raises:
        UsageError: If the images have no labels, or there are none.
        UnsupportedModelError: If no output is logits of the classes that the labels tell.
        CorruptInputError: If an output is NaN, or a label is beyond the classes.
    """
    found = known_accuracy(model, data, kinds)
    if found is not None:
        return found
    for inputs, labels in pairs(data, BATCH):
        if labels is not None:
            raise _no_classes(outputs_for(model, inputs))
        break
    raise UsageError("accuracy needs labels, and these images have none; name some that do")


def known_accuracy(
    model: nn.Module, data: Images | None, kinds: Sequence[Kind] | None = None
) -> float | None:
    """Returns the accuracy as a fraction, or None where nothing tells what is right.

    That is where there are no images or no labels, or no output is logits of their classes.

    Args:
        model: It is evaluated where its parameters are.
        data: As for ``accuracy``; or None.
        kinds: What each output is (``core.outputs``); by default what their shapes tell.

    Raises:
        UsageError: If a loader gives no images.
        CorruptInputError: If an output is NaN, or a label is beyond the classes.
    """
    if data is None or (isinstance(data, LabelledData) and not data.labelled):
        return None
    hits, images = 0.0, 0
    for inputs, labels in pairs(data, BATCH):
        if labels is None:
            return None
        outputs = outputs_for(model, inputs)
        known = _kinds(outputs, inputs, kinds)
        told = judged_by(labels, outputs, known)
        if told is None:
            return None
        check_labels(labels, outputs[told].shape[1])
        hits += float(right(outputs[told].numpy(), labels.cpu().numpy()).sum())
        images += len(inputs)
    if not images:
        raise UsageError("accuracy needs images, and the loader gives none; give one anew")
    return hits / images


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


def outputs_of(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """Returns the outputs for one batch by name, on the CPU, computed where the parameters are."""
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    with evaluating(model):
        found = named(model(*parts_of(mapped(lambda part: part.to(device), inputs))))
    return {name: value.cpu() for name, value in found.items()}


def outputs_for(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """Returns the outputs for one batch by name, on the CPU.

    Raises:
        NotANumberError: If one is not a number.
    """
    found = outputs_of(model, inputs)
    if any(torch.isnan(value).any() for value in found.values()):
        raise NotANumberError(
            "the network's outputs are not numbers (NaN); its weights or the images are damaged"
        )
    return found


def _kinds(outputs: Mapping[str, Tensor], inputs: Any, kinds: Sequence[Kind] | None) -> Kinds:
    if kinds is not None:
        return dict(zip(outputs, kinds, strict=True))
    return kinds_of(outputs, parts_of(inputs)[0].shape)


def _no_classes(outputs: Mapping[str, Tensor]) -> UnsupportedModelError:
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in outputs.items())
    return UnsupportedModelError(
        f"accuracy needs outputs (N, classes), or (N, classes, H, W) with a label for every pixel, "
        f"but the network gives {shapes}; only classifiers have one"
    )
