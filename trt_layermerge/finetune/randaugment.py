"""RandAugment by timm, on batches of normalised images."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.errors import MissingDependencyError, UsageError


class RandAugment:
    """Two random operations of timm's on each image, as 8-bit RGB, of one magnitude.

    Rotations, shears and shifts fill with the mean colour (``rand-mM`` in timm's notation; Cubuk et
    al., CVPR workshops 2020). Slow: about as long as decoding the image.

    Args:
        magnitude: Strength of the operations, 0 to 10.
        preprocess: What made the inputs of bytes, to be undone and done again.

    Raises:
        UsageError: If ``preprocess`` is None or not of three channels, or the magnitude too large.
        MissingDependencyError: If timm is not installed.
    """

    def __init__(self, magnitude: float, preprocess: Preprocess | None) -> None:
        if preprocess is None or len(preprocess.mean) != 3:
            raise UsageError(
                "randaugment changes 8-bit RGB images, and a Dataset of your own gives others; "
                "augment in the Dataset itself, or give npz:FILE or imagefolder:DIR"
            )
        if magnitude > 10:
            raise UsageError(f"randaugment:{magnitude:g} is too strong; choose from 0 to 10")
        try:
            timm = importlib.import_module("timm.data")
        except ImportError as error:
            raise MissingDependencyError("timm", "the augmentation randaugment", "zoo") from error
        self.preprocess, self.magnitude, self.timm = preprocess, magnitude, timm

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Returns changed images ``(N, 3, H, W)``; the same for the same generator."""
        from PIL import Image

        seeds = torch.randint(2**32, (len(images),), generator=generator).tolist()
        transform = self._transform(min(images.shape[2:]))
        changed = []
        for pixels, seed in zip(self._bytes(images), seeds, strict=True):
            with _seeded(seed):
                changed.append(np.asarray(transform(Image.fromarray(pixels)), np.uint8))
        return torch.from_numpy(self.preprocess(np.stack(changed))).to(images)

    def _transform(self, side: int) -> Any:
        p = self.preprocess
        colour = tuple(min(255, round(m / p.scale)) for m in p.mean)
        options = {"translate_const": int(side * 0.45), "img_mean": colour}
        return self.timm.rand_augment_transform(f"rand-m{self.magnitude:g}", options)

    def _bytes(self, images: Tensor) -> Any:
        """Returns the bytes ``(N, H, W, 3)`` that became these inputs."""
        shape = (3, 1, 1)
        mean = torch.tensor(self.preprocess.mean).reshape(shape)
        std = torch.tensor(self.preprocess.std).reshape(shape)
        raw = (images.cpu() * std + mean) / self.preprocess.scale
        return raw.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds what timm draws from, Python's and numpy's generators; restores them at the end."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
