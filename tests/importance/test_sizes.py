"""Sizes of values by hand, and what depends on the number of images."""

from __future__ import annotations

import torch
from torch import fx

from tests.importance.branched import Branched
from trt_layermerge.importance.sizes import Sizes, cached_batch


def test_sizes_by_hand() -> None:
    network = fx.symbolic_trace(Branched().eval())
    sizes = Sizes.of(network, torch.randn(5, 3, 6, 5))
    assert sizes.bytes_an_image["x"] == 4 * 3 * 6 * 5
    assert sizes.bytes_an_image["add"] == sizes.bytes_an_image["first"] == 4 * 4 * 6 * 5
    assert sizes.bytes_an_image["mean"] == 4 * 4
    assert sizes.bytes_an_image["size"] == 0
    assert sizes.bytes_an_image["output"] == 4 * 4 * 6 * 5 + 4 * 4
    names = {node.name for node in network.graph.nodes}
    assert names - sizes.batched == {"scale", "size", "output"}
    assert Sizes.of(network, torch.randn(1, 3, 6, 5)).batched == frozenset()


def test_batches_fit_a_cache() -> None:
    assert cached_batch([96 * 112 * 112 * 4, 1000]) == 3
    assert cached_batch([1 << 30]) == 1
    assert cached_batch([16]) == 64
    sizes = Sizes({"large": 6 << 20, "small": 1}, frozenset())
    assert sizes.images_at_a_time(["large", "small"]) == 2
    assert sizes.images_at_a_time(["small"]) == 64
