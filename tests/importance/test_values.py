"""Values are recorded once as far as memory allows, and are the same whenever they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from tests.importance.branched import NAMES, Branched
from trt_layermerge.importance.values import MOST_IMAGES, RecordedValues, Sizes, cached_batch
from trt_layermerge.merge.segments import Segment, record

AN_IMAGE = 4 * 4 * 6 * 5
"""Bytes of any value between two convolutions, for one image."""


def test_kept_and_recomputed_batches_are_equal(network: fx.GraphModule, images: Tensor) -> None:
    kept = RecordedValues(network, images, NAMES, batch=4, limit_bytes=10**9)
    recomputed = RecordedValues(network, images, NAMES, batch=4, limit_bytes=0)
    assert kept.fits(NAMES) and not recomputed.fits(["add"])
    for ours, theirs in zip(
        kept.batches(["add", "size"]), recomputed.batches(["add", "size"]), strict=True
    ):
        assert torch.equal(ours["add"], theirs["add"])
        assert ours["size"] == theirs["size"] == len(ours["add"])
    assert kept.bytes_an_image["add"] == AN_IMAGE
    assert kept.batches_within(["relu", "add"], 2 * AN_IMAGE * 5) == 2  # five images: one begun
    assert kept.batches_within(["relu", "add"], 10**9) == 3
    assert recomputed.batches_within(["relu"], 1) == 1


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What segments compute while they run, as ``read>made``."""
    found: list[str] = []
    run = Segment.__call__

    def noting(self: Segment, values: dict[str, Any]) -> dict[str, Any]:
        found.append(f"{','.join(self.given)}>{','.join(sorted(self.wanted))}")
        return run(self, values)

    monkeypatch.setattr(Segment, "__call__", noting)
    return found


def asking(
    network: fx.GraphModule, images: Tensor, runs: list[str], room: int
) -> Callable[..., list[str]]:
    """Returns what asks for values, checks them and says what was run for them.

    ``room`` values fit; the images are in three batches.
    """
    values = RecordedValues(network, images, NAMES, batch=4, limit_bytes=room * AN_IMAGE * 10)
    expected = [record(network, part, NAMES) for part in torch.split(images, 4)]

    def ask(*names: str) -> list[str]:
        runs.clear()
        for batch, whole in zip(values.batches(names), expected, strict=True):
            assert all(torch.equal(batch[name], whole[name]) for name in names)
        assert runs[::3] == runs[1::3] == runs[2::3]
        assert len(values._kept) <= room
        return runs[::3]

    return ask


def test_what_was_asked_for_longest_ago_is_forgotten(
    network: fx.GraphModule, images: Tensor, runs: list[str]
) -> None:
    ask = asking(network, images, runs, room=2)
    assert ask("first", "relu") == ["x>first,relu"]
    assert ask("relu", "second") == ["relu>second"]
    assert ask("relu") == []
    assert ask("first") == ["x>first"]  # which makes room by forgetting "second"
    assert ask("relu") == []
    assert ask("second") == ["relu>second"]


def test_values_are_computed_from_the_nearest_kept_ones(
    network: fx.GraphModule, images: Tensor, runs: list[str]
) -> None:
    ask = asking(network, images, runs, room=1)
    assert ask("relu") == ["x>relu"]
    assert ask("add") == ["relu>add"]  # from what leaves meanwhile
    assert ask("third") == ["add>third"]
    assert ask("second") == ["x>second"]
    assert ask("relu_1", "add") == ["x,second>add,relu_1"]  # never kept: together too much
    assert ask("second") == []
    assert ask("first", "second") == ["x,second>first,second"]


def test_batches_are_joined_where_all_is_by_image(network: fx.GraphModule, images: Tensor) -> None:
    values = RecordedValues(network, images, NAMES, batch=2, limit_bytes=10**9)
    joined = list(values.joined_batches(["add", "relu"], 3, 4))
    assert [len(batch["add"]) for batch in joined] == [6, 2]
    expected = record(network, images[:8], ["add", "relu"])
    for name, whole in expected.items():
        assert torch.equal(torch.cat([batch[name] for batch in joined]), whole)
    assert values.batches_at_a_time(["add"], ["add", "relu"]) == MOST_IMAGES // 2
    assert values.batches_at_a_time(["add", "size"], ["add"]) == 1
    assert values.batches_at_a_time(["add", "output"], ["add"]) == 1  # a tuple


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
