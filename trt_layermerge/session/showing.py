"""Images whose answer changed, as small pictures with the names of their classes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trt_layermerge.backends.base import Array
from trt_layermerge.core.jsonio import Json, write_bytes
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.deploy.changes import Change

SIDE = 112
"""Pixels of the longer side of a picture."""


@dataclass(frozen=True)
class Showing:
    """What images are, and how they are shown.

    Attributes:
        what: In words, such as ``test images``.
        preprocess: How their pixels became the network's input.
        class_names: Of the network's classes; empty where they are not known.
    """

    what: str
    preprocess: Preprocess
    class_names: tuple[str, ...] = ()

    def name(self, index: int) -> str:
        """Returns what a class is called: by its number where it has no name."""
        return self.class_names[index] if index < len(self.class_names) else str(index)

    def rows(self, changes: Sequence[Change], folder: Path) -> list[Json]:
        """Returns a row for every change; writes its picture where the input is an image.

        Args:
            changes: What changed.
            folder: Where pictures go, as ``changed/NUMBER.jpg``.
        """
        return [
            {
                "image": change.image,
                "original": self.name(change.original[0]),
                "original_confidence": change.original[1],
                "merged": self.name(change.merged[0]),
                "merged_confidence": change.merged[1],
                "picture": self._picture(change.pixels, folder, f"changed/{change.image}.jpg"),
            }
            for change in changes
        ]

    def _picture(self, inputs: Array, folder: Path, name: str) -> str | None:
        from PIL import Image

        if len(inputs) not in (1, 3):
            return None
        mean, std = (
            np.reshape(each, (-1, 1, 1)) for each in (self.preprocess.mean, self.preprocess.std)
        )
        pixels = (inputs * std + mean) / self.preprocess.scale
        if self.what == RANDOM or not np.isfinite(pixels).all():
            return None
        if self.preprocess.scale == 1.0:  # nothing tells what the inputs were: their range is shown
            pixels = (pixels - pixels.min()) / max(float(np.ptp(pixels)), 1e-12) * 255
        plain = np.rint(pixels).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        image = Image.fromarray(plain[..., 0] if len(inputs) == 1 else plain)
        image.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80)
        write_bytes(folder / name, file.getvalue())
        return name


RANDOM = "random inputs"


def shown_by(test: object | None, train: object | None) -> str:
    """Returns in words which images answers are compared on."""
    if test is not None:
        return "test images"
    return RANDOM if train is None else "training images"
