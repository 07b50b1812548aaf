"""Scenes of digits on textured grounds, with the class of every pixel; fonts split as the glyphs'.

``train``, ``val`` and ``test`` return torch Datasets of normalised images ``(3, 48, 48)`` and maps
``(48, 48)``: 0 is the ground, 1 to 5 are the digits 0 to 4. A seed decides every scene.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

SIZE = 48
COUNTS = {"train": 1500, "val": 300, "test": 500}
CLASSES = ("ground", *"01234")
MEAN, STD = 0.5, 0.25


@cache
def scenes(split: str, count: int = 0, first: int = 0) -> tuple[NDArray[np.uint8], ...]:
    """Returns images ``(N, 48, 48, 3)`` and maps ``(N, 48, 48)``, both uint8.

    Args:
        split: ``train``, ``val`` or ``test``.
        count: How many; 0 for the usual number.
        first: Number of the first scene; others are other scenes of the same fonts.
    """
    with np.load(Path(__file__).parent / "glyphs.npz", allow_pickle=False) as arrays:
        kept = arrays[f"{split}_digit"] < len(CLASSES) - 1
        inks, digits = arrays[f"{split}_ink"][kept], arrays[f"{split}_digit"][kept]
    place = list(COUNTS).index(split)
    made = [
        scene(np.random.default_rng((place, first + number)), inks, digits)
        for number in range(count or COUNTS[split])
    ]
    return np.stack([image for image, _ in made]), np.stack([classes for _, classes in made])


def scene(
    rng: np.random.Generator, inks: NDArray[np.uint8], digits: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns an image and its map: one to three digits, brighter than the ground."""
    canvas = ground(rng)
    classes = np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(rng.integers(1, 4)):
        chosen = int(rng.integers(len(inks)))
        opacity = turned(rng, inks[chosen])
        side = len(opacity)
        row, column = rng.integers(0, SIZE - side + 1, 2)
        here = np.s_[row : row + side, column : column + side]
        if (classes[here][opacity > 0.1]).any():
            continue  # digits do not overlap
        beneath = canvas[here].mean()
        colour = rng.random(3)
        while colour.mean() < beneath + 0.25:  # ink is the brighter one
            colour = rng.random(3) * 0.5 + 0.5
        canvas[here] += (opacity * rng.uniform(0.8, 1))[..., None] * (colour - canvas[here])
        classes[here][opacity > 0.5] = digits[chosen] + 1
    canvas += rng.normal(0, rng.uniform(0, 0.05), canvas.shape)
    return (np.clip(canvas, 0, 1) * 255).round().astype(np.uint8), classes


def ground(rng: np.random.Generator) -> NDArray[np.float64]:
    """Returns a ground ``(48, 48, 3)`` from 0 to 1: a gradient, with stripes, a patch or clouds."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    colours = rng.random((2, 3)) * 0.3 + rng.random(3) * 0.3
    angle = rng.random() * 2 * np.pi
    along = np.cos(angle) * x + np.sin(angle) * y
    kind = rng.integers(4)
    if kind == 0:
        amount = (along - along.min()) / np.ptp(along)
    elif kind == 1:
        amount = 0.5 + 0.5 * np.sin(2 * np.pi * along * rng.uniform(4, 16))
    elif kind == 2:
        amount = (along > rng.uniform(along.min(), along.max())).astype(np.float64)
    else:
        coarse = Image.fromarray((rng.random((8, 8)) * 255).astype(np.uint8))
        amount = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / 255
    mixed: NDArray[np.float64] = colours[0] + amount[..., None] * (colours[1] - colours[0])
    return mixed


def turned(rng: np.random.Generator, ink: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Returns a glyph's opacity, scaled 0.8 to 1.3 times and turned by up to 15 degrees."""
    side = round(32 * rng.uniform(0.8, 1.3))
    image = Image.fromarray(ink).resize((side, side), Image.Resampling.BICUBIC)
    image = image.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float64) / 255


def tensors(split: str, count: int = 0, first: int = 0) -> tuple[Tensor, Tensor]:
    """Returns normalised images and maps of ``scenes``."""
    images, classes = map(torch.from_numpy, scenes(split, count, first))
    return images.permute(0, 3, 1, 2).float().div(255).sub(MEAN).div(STD), classes.long()


def _dataset(split: str) -> TensorDataset:
    dataset = TensorDataset(*tensors(split))
    dataset.classes = CLASSES  # type: ignore[attr-defined]
    return dataset


def train() -> TensorDataset:
    """Returns the scenes to train on."""
    return _dataset("train")


def val() -> TensorDataset:
    """Returns the scenes to choose by."""
    return _dataset("val")


def test() -> TensorDataset:
    """Returns the scenes for the final figures."""
    return _dataset("test")
