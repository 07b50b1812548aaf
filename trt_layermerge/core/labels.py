"""Labels are numbers of classes: what is none would count as a wrong answer, or stop a training."""

from __future__ import annotations

from typing import Any

from trt_layermerge.core.agreement import VOID
from trt_layermerge.errors import CorruptInputError


def check_labels(labels: Any, classes: int) -> None:
    """Checks that every label is one of the network's classes.

    Args:
        labels: Tensor or array ``(n,)``, or ``(n, H, W)`` with one for every pixel, of which those
            that are ``VOID`` count for nothing.
        classes: How many the network tells apart.

    Raises:
        CorruptInputError: If one is not.
    """
    known = labels if labels.ndim == 1 else labels[labels != VOID]
    if not len(known):
        return
    smallest, largest = int(known.min()), int(known.max())
    if not 0 <= smallest <= largest < classes:
        raise CorruptInputError(
            f"an image has the label {smallest if smallest < 0 else largest}, but the network "
            f"tells {classes} classes apart, counted from 0; number the labels (or the class "
            "folders) as the network does"
        )
