"""Random changes of training images, by name.

Some are torchvision's, image by image on 8-bit pixels, as the recipes of the field have them. The
others change a batch of inputs at once, each image its own way, for which torchvision has nothing.
Both draw from seeds on the CPU: a seed gives the same images on every device, whoever loads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.data.images import Framing
from trt_layermerge.data.sets import LabelledData, stored
from trt_layermerge.errors import UsageError

BatchChange: TypeAlias = Callable[[Tensor, Generator], Tensor]
"""Inputs ``(N, C, H, W)`` to inputs."""


# Whole batches


def flip(probability: float) -> BatchChange:
    """Returns: mirror left and right with a probability. Not for letters and digits."""

    def apply(images: Tensor, generator: Generator) -> Tensor:
        mirrored = torch.rand(len(images), generator=generator) < probability
        chosen = mirrored[:, None, None, None].to(images.device)
        return torch.where(chosen, images.flip(3), images)

    return apply


def shift(pixels: float) -> BatchChange:
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


def affine(strength: float) -> BatchChange:
    """Returns: rotate by up to ``strength`` degrees, scale and shear by up to as many percent.

    Sampled bilinearly, numbers of classes from the nearest pixel; reflected at the edges.
    """

    def apply(images: Tensor, generator: Generator) -> Tensor:
        amounts = (2 * torch.rand(4, len(images), generator=generator) - 1) * strength
        angle, scale, shear = amounts[0] * math.pi / 180, 1 + amounts[1] / 100, amounts[2] / 100
        cos, sin, stretch = angle.cos(), angle.sin(), 1 + amounts[3] / 100
        rows = torch.stack(
            [
                torch.stack([scale * cos, shear * cos - sin, torch.zeros_like(cos)], 1),
                torch.stack([scale * sin, (shear * sin + cos) * stretch, torch.zeros_like(cos)], 1),
            ],
            1,
        )
        grid = F.affine_grid(rows.to(images.device), list(images.shape), align_corners=False)
        if images.is_floating_point():
            return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
        places = F.grid_sample(
            images.float(), grid, "nearest", padding_mode="reflection", align_corners=False
        )
        return places.to(images.dtype)

    return apply


def noise(deviation: float) -> BatchChange:
    """Returns: add Gaussian noise, in units of the normalised image."""

    def apply(images: Tensor, generator: Generator) -> Tensor:
        return images + deviation * torch.randn(images.shape, generator=generator).to(images.device)

    return apply


def permute(probability: float) -> BatchChange:
    """Returns: put the channels into a random order, with a probability."""

    def apply(images: Tensor, generator: Generator) -> Tensor:
        n, channels = images.shape[:2]
        order = torch.rand(n, channels, generator=generator).argsort(1)
        kept = torch.rand(n, 1, generator=generator) >= probability
        order = torch.where(kept, torch.arange(channels), order).to(images.device)
        return images.gather(1, order[:, :, None, None].expand_as(images))

    return apply


def invert(probability: float) -> BatchChange:
    """Returns: change the sign, with a probability; a negative where the mean is mid-grey."""

    def apply(images: Tensor, generator: Generator) -> Tensor:
        turned = torch.rand(len(images), 1, 1, 1, generator=generator) < probability
        return torch.where(turned.to(images.device), -images, images)

    return apply


def mixup(share: float) -> BatchChange:
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


# Image by image, by torchvision, which is imported only where a recipe names one


def _crop(least: float, framing: Framing, _: Preprocess) -> Any:
    """A part of ``least`` to all of the whole image, of aspect 3:4 to 4:3, resized."""
    from torchvision.transforms import InterpolationMode, v2

    how = InterpolationMode(framing.interpolation)
    return v2.RandomResizedCrop(framing.size, (least, 1.0), interpolation=how, antialias=True)


def _jitter(strength: float, _: Framing, __: Preprocess) -> Any:
    """Brightness, contrast and saturation times 1 ± ``strength``, in random order."""
    from torchvision.transforms import v2

    return v2.ColorJitter(strength, strength, strength)


def _randaugment(magnitude: float, _: Framing, preprocess: Preprocess) -> Any:
    """Two random operations; 10 is the strongest. Corners fill with the mean colour."""
    from torchvision.transforms import v2

    if magnitude > 10:
        raise UsageError(f"randaugment:{magnitude:g} is too strong; choose from 0 to 10")
    fill = [min(255, round(mean / preprocess.scale)) for mean in preprocess.mean]
    return v2.RandAugment(2, round(3 * magnitude), num_magnitude_bins=31, fill=fill)


def _erase(probability: float, _: Framing, __: Preprocess) -> Any:
    """Noise in a rectangle of 2 to 33 % of the area, with a probability."""
    from torchvision.transforms import v2

    return v2.RandomErasing(probability, value="random")


BATCH_KINDS: Mapping[str, Callable[[float], BatchChange]] = {
    "flip": flip,
    "shift": shift,
    "affine": affine,
    "noise": noise,
    "permute": permute,
    "invert": invert,
    "mixup": mixup,
}
MOVING = ("flip", "shift", "affine")
"""Changes of a batch that move pixels, and labels of pixels with them."""

IMAGE_KINDS: Mapping[str, Callable[[float, Framing, Preprocess], Any]] = {
    "crop": _crop,
    "jitter": _jitter,
    "randaugment": _randaugment,
    "erase": _erase,
}
"""Augmentation by name; a recipe writes ``name:amount``, or ``flip`` alone."""


@dataclass(frozen=True)
class Augmentation:
    """What is changed, in this order; each part in the order of the recipe.

    Attributes:
        crop: In the place of what evaluation does to the size of an image, or None.
        pixels: On the 8-bit pixels of an image.
        normal: On the inputs that became of it.
        batch: On a whole batch of inputs, each with whether it moves pixels.
    """

    crop: Any | None
    pixels: tuple[Any, ...]
    normal: tuple[Any, ...]
    batch: tuple[tuple[BatchChange, bool], ...]

    @property
    def by_image(self) -> bool:
        """Whether anything is done image by image."""
        return bool(self.crop or self.pixels or self.normal)

    def image(self, data: Any, index: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """Returns an image of a stored set as inputs ``(C, H, W)``, changed, and its label.

        Args:
            data: The set, such as ``data.folders.EncodedData``.
            index: Which image; a label of its pixels is cropped as it is.
            seed: Of all changes; torch's generator is left as it was.

        Raises:
            CorruptInputError: If the image cannot be decoded.
        """
        from torchvision.transforms.v2 import functional
        from torchvision.tv_tensors import Mask

        label: Tensor | None = None if data.labels is None else data.labels[index]
        with _drawing(seed):
            image = self.crop(data.image(index)) if self.crop else data.pixels(index)
            for change in self.pixels:
                image = change(image)
            inputs: Tensor = data.inputs(
                image if isinstance(image, Tensor) else functional.pil_to_tensor(image)
            )
            for change in self.normal:
                inputs = change(inputs)
        if self.crop and label is not None and label.ndim:
            with _drawing(seed):  # the same crop again
                label = self.crop(Mask(label)).as_subclass(Tensor)
        return inputs, label

    def whole(
        self, images: Tensor, labels: Tensor | None, seed: int
    ) -> tuple[Tensor, Tensor | None]:
        """Returns a batch of inputs ``(N, C, H, W)``, changed, and its labels.

        Args:
            images: The inputs.
            labels: Of the images, ``(N,)``, which stay; or of pixels, ``(N, H, W)``, which move
                as these do; or None.
            seed: Of all changes.
        """
        generator = torch.Generator().manual_seed(seed)
        for change, moves in self.batch:
            before = generator.get_state()
            images = change(images, generator)
            if moves and labels is not None and labels.ndim > 1:
                labels = change(labels[:, None], generator.set_state(before))[:, 0]
        return images, labels


def parse_augment(names: Sequence[str], data: LabelledData) -> Augmentation | None:
    """Returns the named augmentations of a set, or None where there are none.

    Args:
        names: Each ``kind:amount``, of ``BATCH_KINDS`` or ``IMAGE_KINDS``.
        data: The images, or a part of them.

    Raises:
        UsageError: If a name or amount is not understood, or 8-bit images are needed and the set
            has others.
    """
    found = [_parse_one(name) for name in names]
    if not found:
        return None
    source: Any = stored(data)
    made: dict[str, Any] = {}
    for kind, amount in found:
        if kind in BATCH_KINDS:
            continue
        preprocess = getattr(source, "preprocess", None)
        if not hasattr(source, "inputs") or not isinstance(preprocess, Preprocess):
            raise UsageError(
                f"{kind} changes 8-bit images, and a Dataset of your own gives others; augment in "
                "the Dataset itself, or give npz:FILE or imagefolder:DIR"
            )
        labels = getattr(source, "labels", None)
        if kind == "randaugment" and labels is not None and labels.ndim > 1:
            raise UsageError(
                "randaugment moves pixels at random, and the labels of these pixels would stay; "
                "name other changes, such as flip, affine:10, crop:0.5 and jitter:0.4"
            )
        channels = len(preprocess.mean)
        if kind in ("jitter", "randaugment") and channels not in (1, 3):
            raise UsageError(
                f"{kind} is for grey or RGB images, and these have {channels} channels"
            )
        framing = getattr(source, "framing", None) or Framing(source.size)
        made[kind] = IMAGE_KINDS[kind](amount, framing, preprocess)
    return Augmentation(
        made.get("crop"),
        tuple(made[kind] for kind, _ in found if kind in ("jitter", "randaugment")),
        tuple(made[kind] for kind, _ in found if kind == "erase"),
        tuple(
            (BATCH_KINDS[kind](amount), kind in MOVING)
            for kind, amount in found
            if kind in BATCH_KINDS
        ),
    )


def _parse_one(name: str) -> tuple[str, float]:
    kind, _, amount = name.partition(":")
    try:
        value = float(amount or (0.5 if kind == "flip" else "nan"))
        if not 0 <= value < math.inf or kind not in {*BATCH_KINDS, *IMAGE_KINDS}:
            raise ValueError(value)
    except ValueError as error:
        known = ", ".join(f"{k}:AMOUNT" for k in (*BATCH_KINDS, *IMAGE_KINDS))
        raise UsageError(f"augmentation {name!r} is not understood; known: {known}") from error
    return kind, value


def seed_of(*numbers: int) -> int:
    """Returns a seed that numbers, such as those of an epoch and of an image, make together."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Seeds what torchvision draws from, torch's generator; puts its state back at the end."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
