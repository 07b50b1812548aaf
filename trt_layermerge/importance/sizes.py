"""How large the values of a network are, and so how many images are computed at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.fx.node import map_aggregate

from trt_layermerge.importance.segments import record

CACHE_BYTES = 16 << 20
"""Bytes of the largest value of a batch: more than a processor's cache only makes it wait."""

MOST_IMAGES = 64


@dataclass(frozen=True)
class Sizes:
    """Sizes of all values of a network.

    Attributes:
        bytes_an_image: Bytes of each value, for one image, by name.
        batched: Names of the tensors that hold one row for every image and change in nothing else
            with their number.
    """

    bytes_an_image: dict[str, int]
    batched: frozenset[str]

    @staticmethod
    def of(network: fx.GraphModule, images: Tensor) -> Sizes:
        """Returns the sizes, found on the first two images ``(N, C, H, W)``."""
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
