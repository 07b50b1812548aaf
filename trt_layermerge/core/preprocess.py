"""How an image becomes the network's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What nearly every network of RGB images was trained with."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """``y = (x · scale − mean) / std`` on 8-bit RGB, per channel, giving float32 NCHW."""

    scale: float = 1 / 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Maps images ``(N, H, W, C)`` to network inputs ``(N, C, H, W)``."""
        scaled = images.astype(np.float32) * np.float32(self.scale)
        normal = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(0, 3, 1, 2))

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready mapping (``summary.json``: preprocess)."""
        return {"scale": self.scale, "mean": list(self.mean), "std": list(self.std)}


def for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Returns one value a channel: the given ones, or their average where there are others.

    The average of RGB is what grey images of a network of colours need.
    """
    if len(values) == channels:
        return values
    return (sum(values) / len(values),) * channels
