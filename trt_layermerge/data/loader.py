"""Batches of images: of a set, through torch's DataLoader, or of somebody's own loader.

A set's images are decoded and changed by worker processes while the network computes. What they
draw follows from the seed and the number of the image alone: the number of workers changes no bit.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from trt_layermerge.core.inputs import Several, parse
from trt_layermerge.data.augment import Augmentation, seed_of
from trt_layermerge.data.sets import LabelledData, Part, permutation, stored
from trt_layermerge.data.sources import ArrayData, DatasetData
from trt_layermerge.errors import LayerMergeError, UsageError

log = logging.getLogger(__name__)

Batch: TypeAlias = tuple[Any, Tensor | None]
"""Images ``(N, C, H, W)`` float, or several inputs (``core.inputs``), and labels int64 or None: of
every image ``(N,)``, or of every pixel ``(N, H, W)``."""

Images: TypeAlias = LabelledData | Iterable[Any]
"""A set, or anything that yields batches: images alone, or images and labels."""

WORKERS = 4
"""Processes that decode, at most, unless asked for others."""

SHARED = "/dev/shm"


class Order(Sampler[tuple[int, list[int]]]):
    """Which images are in which batch, and the batch's seed; of each batch, a process's share.

    Args:
        count: Number of images.
        size: Images a batch.
        drop_last: Leaves out a last batch that is smaller.
        share: Number of this process, and of all.

    Attributes:
        seed: Of order and augmentation; None keeps the order.
    """

    def __init__(self, count: int, size: int, drop_last: bool, share: tuple[int, int]) -> None:
        self.count, self.size, self.share = count, size, share
        self.batches = count // size if drop_last else -(-count // size)
        self.seed: int | None = None

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        """Yields a seed and the numbers of images."""
        seed, (own, processes) = self.seed, self.share
        order = torch.arange(self.count) if seed is None else permutation(self.count, seed)
        for number, chosen in enumerate(torch.split(order, self.size)[: self.batches]):
            part = chosen.tensor_split(processes)[own].tolist()
            if part:
                yield seed_of(seed or 0, own, number), part


class _Drawn(Dataset[Any]):
    """Whole batches of a set by what ``Order`` yields; an error of ours is an item like others."""

    def __init__(self, data: LabelledData, augmentation: Augmentation | None) -> None:
        self.data, self.augmentation = data, augmentation

    def __getitem__(self, drawn: tuple[int, list[int]]) -> Batch | LayerMergeError:
        try:
            return self._batch(*drawn)
        except LayerMergeError as error:
            return error

    def _batch(self, seed: int, indices: list[int]) -> Batch:
        change, where = self.augmentation, torch.tensor(indices)
        if change is None:
            return self.data.batch(where)
        if not change.by_image:
            return change.whole(*self.data.batch(where), seed)
        data: Any = self.data
        while isinstance(data, Part):
            data, where = data.data, data.indices[where]
        found = [change.image(data, i, seed_of(seed, i)) for i in where.tolist()]
        images, labels = zip(*found, strict=True)
        whole = None if labels[0] is None else torch.stack(labels)
        return change.whole(torch.stack(images), whole, seed)


class Batches:
    """Batches of a set, as often as they are asked for.

    Args:
        data: The images.
        size: Images a batch; the last one may be smaller.
        augmentation: What is changed at random.
        drop_last: Leaves out a last batch that is smaller than ``size``.
        share: Number of this process, and how many share each batch.
        workers: Processes that load; by default as many as there are processors, 4 at most, and
            none where arrays in memory are not changed image by image.
        pin: Whether images are on their way to a GPU.
    """

    def __init__(
        self,
        data: LabelledData,
        size: int,
        *,
        augmentation: Augmentation | None = None,
        drop_last: bool = False,
        share: tuple[int, int] = (0, 1),
        workers: int | None = None,
        pin: bool = False,
    ) -> None:
        self._order = Order(len(data), size, drop_last, share)
        by_image = augmentation is not None and augmentation.by_image
        if workers is None:
            workers = usual_workers(data, size, len(self._order), by_image)
        self._loader: DataLoader[Any] = DataLoader(
            _Drawn(data, augmentation),
            batch_size=None,
            sampler=self._order,
            num_workers=workers,
            collate_fn=_same,
            generator=torch.Generator(),  # else it would draw from the caller's
            persistent_workers=workers > 0,
            pin_memory=pin,
        )

    def __len__(self) -> int:
        return len(self._order)

    def drawn(self, seed: int | None) -> Iterator[Batch]:
        """Yields images and labels, shuffled and changed by a seed; None keeps the order.

        Raises:
            LayerMergeError: Whatever reading an image raises.
        """
        self._order.seed = seed
        for item in self._loader:
            if isinstance(item, LayerMergeError):
                raise item
            yield item


class GivenBatches:
    """Batches that somebody's own loader makes, used as they are.

    Args:
        batches: Yields them, anew whenever it is iterated over.

    Raises:
        UsageError: If it can be iterated over only once, or yields nothing.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        _refuse_iterator(batches)
        self._batches = batches
        try:
            self._count = len(batches)  # type: ignore[arg-type]
        except TypeError:
            self._count = sum(1 for _ in batches)
        if not self._count:
            raise UsageError("there is no batch of images to train on; give at least one")

    def __len__(self) -> int:
        return self._count

    def drawn(self, seed: int | None) -> Iterator[Batch]:
        """Yields images and labels; their order is the loader's own."""
        return map(batch_of, self._batches)


def batches(data: LabelledData, size: int) -> Iterator[Batch]:
    """Yields images ``(n, C, H, W)`` and labels ``(n,)`` or None, in order, by ``size`` or less."""
    return Batches(data, size).drawn(None)


def pairs(data: Images, size: int) -> Iterator[Batch]:
    """Yields images and labels of a set in batches of ``size``, or the batches of a loader.

    Raises:
        UsageError: If a batch is none.
    """
    return batches(data, size) if isinstance(data, LabelledData) else map(batch_of, data)


def batch_of(item: Any) -> Batch:
    """Returns images and labels of a batch: a tensor, or a tuple or list that begins with them.

    Raises:
        UsageError: If it is none.
    """
    images, labels, *_ = (*item, None, None) if isinstance(item, tuple | list) else (item, None)
    single = isinstance(images, Tensor) and images.is_floating_point() and images.ndim == 4
    if single or isinstance(images, Several):
        if labels is None:
            return images, None
        whole = isinstance(labels, Tensor) and not labels.is_floating_point()
        if whole and len(labels) == len(images):
            return images, labels.long()
    raise UsageError(
        f"a loader gives {_told(item)} for a batch; give images, float tensors (N, C, H, W), "
        "or tuples of such images and their labels, integer tensors (N,)"
    )


class SeveralInputs:
    """Batches of somebody's own loader for a network of several inputs, as often as it gives them.

    Args:
        loader: Gives batches that ``core.inputs.parse`` reads.
        names: What the network's inputs are called.

    Raises:
        UsageError: If it can be iterated over only once.
    """

    def __init__(self, loader: Iterable[Any], names: Sequence[str]) -> None:
        _refuse_iterator(loader)
        self.loader, self.names = loader, names

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[Several, Any]]:
        """Yields inputs, and labels or None."""
        return (parse(item, self.names) for item in self.loader)


def usual_workers(data: LabelledData, size: int, count: int, by_image: bool) -> int:
    """Returns how many processes load ``count`` batches of ``size`` images of a set.

    Args:
        data: The set. Arrays in memory, and sets of other people's making, are read at once.
        size: Images a batch.
        count: Batches in all.
        by_image: Whether images are changed one by one.
    """
    source = stored(data)
    rows, columns = getattr(source, "size", (0, 0))
    slow = rows and (by_image or not isinstance(source, ArrayData))
    if not slow and not isinstance(source, DatasetData):
        return 0
    wanted = max(0, min(WORKERS, len(os.sched_getaffinity(0)), count - 1))
    if rows and os.path.isdir(SHARED):
        each = 2 * 4 * 3 * rows * columns * size  # float32; a worker is two batches ahead
        fitting = shutil.disk_usage(SHARED).free // each
        if fitting < wanted:
            log.warning(
                "%s has room for %d processes that load images, not for %d; give a container "
                "more (docker run --ipc=host), or training waits for images",
                *(SHARED, fitting, wanted),
            )
            return int(fitting)
    return wanted


def _refuse_iterator(batches: Iterable[Any]) -> None:
    if isinstance(batches, Iterator):
        raise UsageError(
            "training needs its batches once an epoch, and a generator gives them once; give "
            "a list, a DataLoader, or an object whose __iter__ starts anew"
        )


def _told(item: Any) -> str:
    if isinstance(item, tuple | list):
        return f"{type(item).__name__} of {', '.join(map(_told, item[:3])) or 'nothing'}"
    if isinstance(item, Tensor):
        return f"a tensor {tuple(item.shape)} of {item.dtype}"
    return type(item).__name__


def _same(item: Any) -> Any:
    return item
