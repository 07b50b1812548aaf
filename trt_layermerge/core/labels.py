"""Labels are numbers of classes: what is none would count as a wrong answer, or stop a training."""

from __future__ import annotations

from trt_layermerge.errors import CorruptInputError


def check_labels(smallest: int, largest: int, classes: int) -> None:
    """Checks that every label is one of the network's classes.

    Args:
        smallest: The least label.
        largest: The greatest one.
        classes: How many the network tells apart.

    Raises:
        CorruptInputError: If one is not.
    """
    if not 0 <= smallest <= largest < classes:
        raise CorruptInputError(
            f"an image has the label {smallest if smallest < 0 else largest}, but the network "
            f"tells {classes} classes apart, counted from 0; number the labels (or the class "
            "folders) as the network does"
        )
