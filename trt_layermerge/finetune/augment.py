"""Random changes of a batch of normalised images, each image its own, from a seeded generator.

Random numbers are drawn on the CPU, so a seed gives the same images on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.errors import UsageError
from trt_layermerge.finetune.randaugment import RandAugment

Augment: TypeAlias = Callable[[Tensor, Generator], Tensor]


def shift(pixels: float) -> Augment:
    """Returns: move by up to ``pixels`` whole pixels in x and y, edges replicated."""
    reach = round(pixels)

    def apply(images: Tensor, generator: Generator) -> Tensor:
        n, channels, height, width = images.shape
        padded = F.pad(images, (reach,) * 4, mode="replicate")
        offsets = torch.randint(0, 2 * reach + 1, (2, n, 1), generator=generator)
        rows = torch.arange(height) + offsets[0]
        columns = torch.arange(width) + offsets[1]
        image, channel = torch.arange(n), torch.arange(channels)
        return padded[
            image[:, None, None, None],
            channel[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]

    return apply


def flip(probability: float = 0.5) -> Augment:
    """Returns: mirror left and right with a probability. Not for letters and digits."""

    def apply(images: Tensor, generator: Generator) -> Tensor:
        mirrored = torch.rand(len(images), generator=generator) < probability
        chosen = mirrored[:, None, None, None].to(images.device)
        return torch.where(chosen, images.flip(3), images)

    return apply


def affine(strength: float) -> Augment:
    """Returns: rotate by up to ``strength`` degrees, scale and shear by up to as many percent.

    Sampled bilinearly, reflected at the edges.
    """

    def apply(images: Tensor, generator: Generator) -> Tensor:
        amounts = _uniform((4, len(images)), strength, generator)
        angle, scale, shear = amounts[0] * math.pi / 180, 1 + amounts[1] / 100, amounts[2] / 100
        cos, sin, stretch = angle.cos(), angle.sin(), 1 + amounts[3] / 100
        rows = torch.stack(
            [
                torch.stack([scale * cos, shear * cos - sin, torch.zeros_like(cos)], 1),
                torch.stack([scale * sin, (shear * sin + cos) * stretch, torch.zeros_like(cos)], 1),
            ],
            1,
        )
        return _resample(images, rows)

    return apply


def crop(least: float) -> Augment:
    """Returns: enlarge a part of ``least`` to all of the area, of aspect 3:4 to 4:3.

    The usual random resized crop, taken from the image as it is loaded.
    """

    def apply(images: Tensor, generator: Generator) -> Tensor:
        area, log_aspect, x, y = torch.rand(4, len(images), generator=generator)
        area = least + (1 - least) * area
        aspect = torch.exp((2 * log_aspect - 1) * math.log(4 / 3))
        width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
        zero = torch.zeros_like(area)
        rows = torch.stack(
            [
                torch.stack([width, zero, (2 * x - 1) * (1 - width)], 1),
                torch.stack([zero, height, (2 * y - 1) * (1 - height)], 1),
            ],
            1,
        )
        return _resample(images, rows)

    return apply


def jitter(strength: float) -> Augment:
    """Returns: scale contrast by 1 ± ``strength``, add ± ``strength`` deviations of brightness."""

    def apply(images: Tensor, generator: Generator) -> Tensor:
        amounts = _uniform((2, len(images), 1, 1, 1), strength, generator).to(images.device)
        centre = images.mean((1, 2, 3), keepdim=True)
        return (images - centre) * (1 + amounts[0]) + centre + amounts[1]

    return apply


def noise(deviation: float) -> Augment:
    """Returns: add Gaussian noise, in units of the normalised image."""

    def apply(images: Tensor, generator: Generator) -> Tensor:
        return images + deviation * torch.randn(images.shape, generator=generator).to(images.device)

    return apply


def erase(probability: float) -> Augment:
    """Returns: set a random rectangle of 2 to 33 % of the area to zero, with a probability."""

    def apply(images: Tensor, generator: Generator) -> Tensor:
        n, _, height, width = images.shape
        hit, area, x, y = torch.rand(4, n, 1, 1, 1, generator=generator)
        half = (0.02 + 0.31 * area).sqrt() / 2
        rows = (torch.arange(height)[:, None] + 0.5) / height
        columns = (torch.arange(width) + 0.5) / width
        inside = ((rows - y).abs() < half) & ((columns - x).abs() < half) & (hit < probability)
        return images.masked_fill(inside.to(images.device), 0.0)

    return apply


def permute(probability: float) -> Augment:
    """Returns: put the channels into a random order, with a probability."""

    def apply(images: Tensor, generator: Generator) -> Tensor:
        n, channels = images.shape[:2]
        order = torch.rand(n, channels, generator=generator).argsort(1)
        kept = torch.rand(n, 1, generator=generator) >= probability
        order = torch.where(kept, torch.arange(channels), order).to(images.device)
        return images.gather(1, order[:, :, None, None].expand_as(images))

    return apply


def invert(probability: float) -> Augment:
    """Returns: change the sign, with a probability; a negative where the mean is mid-grey."""

    def apply(images: Tensor, generator: Generator) -> Tensor:
        turned = torch.rand(len(images), 1, 1, 1, generator=generator) < probability
        return torch.where(turned.to(images.device), -images, images)

    return apply


def mixup(share: float) -> Augment:
    """Returns: mix up to ``share`` of another image of the batch into each image.

    Only the teacher knows what the mixture shows, so the labels must not count (Zhang et al., ICLR
    2018; for distillation alone, Beyer et al., CVPR 2022).
    """

    def apply(images: Tensor, generator: Generator) -> Tensor:
        n = len(images)
        amount = share * torch.rand(n, 1, 1, 1, generator=generator).to(images.device)
        other = torch.randperm(n, generator=generator)
        return torch.lerp(images, images[other], amount)

    return apply


KINDS: dict[str, Callable[[float], Augment]] = {
    "shift": shift,
    "flip": flip,
    "affine": affine,
    "crop": crop,
    "jitter": jitter,
    "noise": noise,
    "erase": erase,
    "permute": permute,
    "invert": invert,
    "mixup": mixup,
}
"""Augmentation by name; a recipe writes ``name:amount``, or ``flip`` alone."""

RANDAUGMENT = "randaugment"


def parse_augment(names: Sequence[str], preprocess: Preprocess | None = None) -> Augment | None:
    """Returns the named augmentations one after the other, or None where there are none.

    Args:
        names: Each ``kind:amount``; besides ``KINDS`` there is ``randaugment:MAGNITUDE``, by timm.
        preprocess: What made the images of bytes; needed by ``randaugment`` alone.

    Raises:
        UsageError: If a name or amount is not understood.
        MissingDependencyError: If timm is needed and not installed.
    """
    steps = [_parse_one(name, preprocess) for name in names]
    if not steps:
        return None

    def apply(images: Tensor, generator: Generator) -> Tensor:
        for step in steps:
            images = step(images, generator)
        return images

    return apply


def _parse_one(name: str, preprocess: Preprocess | None) -> Augment:
    kind, _, amount = name.partition(":")
    try:
        value = float(amount or (0.5 if kind == "flip" else "nan"))
        if not 0 <= value < math.inf:
            raise ValueError(value)
        if kind == RANDAUGMENT:
            return RandAugment(value, preprocess)
        return KINDS[kind](value)
    except (KeyError, ValueError) as error:
        known = ", ".join(f"{k}:AMOUNT" for k in (*KINDS, RANDAUGMENT))
        raise UsageError(f"augmentation {name!r} is not understood; known: {known}") from error


def _uniform(shape: tuple[int, ...], reach: float, generator: Generator) -> Tensor:
    return (2 * torch.rand(shape, generator=generator) - 1) * reach


def _resample(images: Tensor, matrices: Tensor) -> Tensor:
    """Returns images seen through maps ``(N, 2, 3)`` from output to input coordinates."""
    grid = F.affine_grid(matrices.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
