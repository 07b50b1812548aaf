"""Images that a session is given, sets or loaders, in the numbers that its verbs need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from trt_layermerge.core.inputs import joined, mapped
from trt_layermerge.data import LabelledData, split
from trt_layermerge.data.loader import Batch, Images, batch_of
from trt_layermerge.errors import UsageError


@dataclass(frozen=True)
class TensorImages:
    """Images in memory.

    Attributes:
        images: Network inputs ``(N, C, H, W)``, or several (``core.inputs``).
        labels: int64, ``(N,)`` or of every pixel ``(N, H, W)``, or None.
    """

    images: Any
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.labels is not None

    def batch(self, indices: Tensor) -> tuple[Any, Tensor | None]:
        """Returns images ``(n, C, H, W)`` and their labels ``(n,)``, or None."""
        return self.images[indices], None if self.labels is None else self.labels[indices]


@dataclass(frozen=True)
class FirstBatches:
    """The first batches of a loader at every pass.

    Attributes:
        loader: Where they come from.
        count: How many.
    """

    loader: Iterable[Any]
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.loader), self.count)


def in_memory(images: Images, count: int) -> LabelledData:
    """Returns a set; of a loader, its first images.

    Args:
        images: A set, which is returned as it is, or a loader.
        count: How many images of a loader are kept in memory.

    Raises:
        UsageError: If a loader gives nothing, or no images.
    """
    if isinstance(images, LabelledData):
        return images
    found: list[Batch] = []
    held = 0
    for batch in images:
        found.append(batch_of(batch))
        held += len(found[-1][0])
        if held >= count:
            break
    if not found:
        raise UsageError("the loader gives no images; give one that can be iterated again")
    labels = [known for _, known in found if known is not None]
    return TensorImages(
        joined([mapped(plain, inputs) for inputs, _ in found], torch.cat)[:count],
        torch.cat(labels).cpu()[:count] if len(labels) == len(found) else None,
    )


def plain(tensor: Tensor) -> Tensor:
    """Returns an input on the CPU, in float32 unless it holds whole numbers."""
    here = tensor.detach().cpu()
    return here.float() if here.is_floating_point() else here


def random_like(example: Any, count: int, seed: int) -> Any:
    """Returns random inputs of the kind of an example; whole numbers are the example's.

    Args:
        example: Inputs of the network.
        count: How many rows.
        seed: Of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(part: Tensor) -> Tensor:
        if part.is_floating_point():
            return torch.randn(count, *part.shape[1:], generator=generator)
        return part[torch.arange(count) % len(part)]

    return mapped(drawn, example)


def calibration_of(
    images: Images, fit_images: int, score_images: int, seed: int
) -> tuple[LabelledData, LabelledData]:
    """Returns disjoint training images: to fit repairs on, and to score on.

    Args:
        images: The training images; of a loader, the first ones serve.
        fit_images: How many to fit on; half of all at most.
        score_images: How many to score on at most.
        seed: Decides which; of a set, they are drawn.

    Raises:
        UsageError: If there is a single image.
    """
    data = in_memory(images, fit_images + score_images)
    if len(data) < 2:
        raise UsageError(
            "there is a single training image, and repairs are fitted on some images and scored "
            "on others; give more (data.train)"
        )
    fit, rest = split(data, min(fit_images, len(data) // 2), seed)
    return fit, split(rest, score_images, seed)[0] if score_images < len(rest) else rest


def images_of(data: LabelledData, count: int | None = None) -> Any:
    """Returns the first inputs of a set, or all, as one batch ``(N, C, H, W)``."""
    return data.batch(torch.arange(len(data) if count is None else min(count, len(data))))[0]
