"""Tiny image files for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trt_layermerge.core.preprocess import Preprocess

PREPROCESS = Preprocess(1 / 255, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


def save_images(path: Path, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Writes and returns images (N, 8, 8, 3) whose brightest channel is the label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 160, (count, 8, 8, 3), dtype=np.uint8)
    images[np.arange(count), :, :, labels] += 60
    np.savez(path, images=images, labels=labels, class_names=np.array(["r", "g", "b"]))
    return images, labels
