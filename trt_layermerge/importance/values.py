"""Values inside a traced network: recorded once, and recomputed only where one of them changes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from math import ceil
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from trt_layermerge.core.inputs import chunks, parts_of
from trt_layermerge.merge.segments import Values, record, segment
from trt_layermerge.merge.surgery import inputs_of

CACHE_BYTES = 16 << 20
"""Bytes of the largest value of a batch: more than a processor's cache only makes it wait."""

MOST_IMAGES = 64


SEGMENTS = 16
"""Segments that stay compiled: most serve every batch of one candidate, and no other candidate."""

Columns = dict[str, list[Any]]
"""Values by name, and batch by batch."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of all values of a network for one image, by name.

    ``batched`` are the tensors that hold one row for every image and change in nothing else with
    their number.
    """

    bytes_an_image: dict[str, int]
    batched: frozenset[str]

    @staticmethod
    def of(network: fx.GraphModule, images: Any) -> Sizes:
        """Returns the sizes, found on the first two images ``(N, C, H, W)``, or several inputs."""
        names = [node.name for node in network.graph.nodes]
        one, two = (record(network, images[:count], names) for count in (1, 2))
        return Sizes(
            {name: _bytes(value) for name, value in one.items()},
            frozenset(name for name in names if _grows(one[name], two[name])),
        )

    def images_at_a_time(self, names: Iterable[str]) -> int:
        """Returns how many images' values of these names a processor's cache holds."""
        return cached_batch([self.bytes_an_image[name] for name in names])


def cached_batch(bytes_an_image: Collection[int]) -> int:
    """Returns how many images are computed at a time, by the bytes of each value of one image."""
    return max(1, min(MOST_IMAGES, CACHE_BYTES // max(1, *bytes_an_image)))


class RecordedValues:
    """Values of a network on fixed images, batch by batch.

    What was asked for last is kept as far as memory allows, so that candidates which follow each
    other share it, and what is missing is computed from the nearest kept values, the images at the
    latest; if all fits, it is recorded once, in one run.

    Args:
        network: The traced network, in eval mode.
        images: Its input ``(N, C, H, W)``, or several (``core.inputs``).
        names: Every value that may be asked for.
        batch: Images a batch, or None for as many as a processor's cache holds.
        limit_bytes: Bytes that kept values may take.

    Attributes:
        parts: The images, batch by batch.
        sizes: The sizes of all values of the network.
        bytes_an_image: Bytes of each value that may be asked for, for one image.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        images: Any,
        names: Iterable[str],
        batch: int | None,
        limit_bytes: int,
    ) -> None:
        self._limit_bytes = limit_bytes
        self._segment = lru_cache(SEGMENTS)(partial(segment, network))
        self.sizes = Sizes.of(network, images)
        self.bytes_an_image = {name: self.sizes.bytes_an_image[name] for name in names}
        self._images = len(images)
        size = batch or cached_batch(self.bytes_an_image.values())
        self.parts = tuple(chunks(images, size))
        columns = zip(*map(parts_of, self.parts), strict=True)
        self._inputs: Columns = dict(zip(inputs_of(network), map(list, columns), strict=True))
        self._kept: Columns = {}
        if self.fits(self.bytes_an_image):
            self._keep(tuple(self.bytes_an_image), {})

    def fits(self, names: Iterable[str]) -> bool:
        """Whether the named values of all images may be kept together."""
        return self._bytes(names) <= self._limit_bytes

    def batches(self, names: Sequence[str]) -> Iterator[Values]:
        """Yields the named values of every batch, in order."""
        if not self.fits(names):
            yield from self._recorded(names, self._kept)
            return
        missing = [name for name in names if name not in self._kept]
        self._keep(missing, self._leaving(missing, names))
        for name in names:  # the one that was asked for last stays longest
            self._kept[name] = self._kept.pop(name)
        columns = [tuple(self._kept[name]) for name in names]
        for values in zip(*columns, strict=True):
            yield dict(zip(names, values, strict=True))

    def joined_batches(self, names: Sequence[str], together: int, first: int) -> Iterator[Values]:
        """Yields the named tensors of the first batches, several of them joined to one.

        Args:
            names: Tensors with one row for each image.
            together: Batches that are joined; the last ones may be fewer.
            first: How many batches in all.
        """
        batches = islice(self.batches(names), first)
        while waiting := list(islice(batches, together)):
            yield waiting[0] if len(waiting) == 1 else _joined(waiting, names)

    def batches_at_a_time(self, names: Iterable[str], computed: Iterable[str]) -> int:
        """Returns how many batches may be joined.

        Args:
            names: Values that would be joined or split; 1 is returned if one cannot be.
            computed: All values that are held or computed meanwhile.
        """
        if not self.sizes.batched.issuperset(names):
            return 1
        return max(1, self.sizes.images_at_a_time(computed) // len(self.parts[0]))

    def batches_within(self, names: Iterable[str], limit_bytes: int) -> int:
        """Returns how many of the first batches have these values within a limit, at least one.

        The last one may go beyond it.
        """
        an_image = max(1, sum(self.bytes_an_image[name] for name in names))
        images = limit_bytes // an_image
        return min(len(self.parts), max(1, ceil(images / len(self.parts[0]))))

    def _bytes(self, names: Iterable[str]) -> int:
        return self._images * sum(self.bytes_an_image[name] for name in names)

    def _leaving(self, missing: Sequence[str], wanted: Sequence[str]) -> Columns:
        """Takes out what was asked for longest ago until the missing values fit, and returns it."""
        leaving: Columns = {}
        for name in [name for name in self._kept if name not in wanted]:
            if self.fits([*self._kept, *missing]):
                break
            leaving[name] = self._kept.pop(name)
        return leaving

    def _keep(self, names: Sequence[str], leaving: Columns) -> None:
        """Records values; those that leave are still read, and are dropped batch by batch."""
        columns: Columns = {name: [] for name in names}
        recorded = self._recorded(names, self._kept | leaving) if names else ()
        for number, values in enumerate(recorded):
            for name, column in columns.items():
                column.append(values[name])
            for column in leaving.values():
                column[number] = None
        self._kept |= columns

    def _recorded(self, names: Sequence[str], known: Columns) -> Iterator[Values]:
        """Yields the named values of every batch, computed from the nearest known ones."""
        columns = {**self._inputs, **known}
        found = self._segment(frozenset(columns), tuple(names))
        for number in range(len(self.parts)):
            yield found({name: columns[name][number] for name in found.given})


def _joined(parts: Sequence[Values], names: Sequence[str]) -> Values:
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def _grows(one: Any, two: Any) -> bool:
    """Whether a value for two images has twice the rows of that for one."""
    if not (isinstance(one, Tensor) and isinstance(two, Tensor)):
        return False
    return one.ndim > 0 and two.shape == (2, *one.shape[1:]) and len(one) == 1


def _bytes(value: Any) -> int:
    """Returns the bytes of every tensor in a value."""
    total = 0

    def count(part: Any) -> None:
        nonlocal total
        total += part.numel() * part.element_size() if isinstance(part, Tensor) else 0

    map_aggregate(value, count)
    return total
