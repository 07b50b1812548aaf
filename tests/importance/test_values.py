"""Values are recorded once as far as memory allows, and are the same whenever they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from tests.importance.branched import Branched
from trt_layermerge.importance.segments import Segment, record
from trt_layermerge.importance.values import RecordedValues, cached_batch


@pytest.fixture
def network() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(Branched().eval())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(10, 3, 6, 5, generator=torch.Generator().manual_seed(1))


NAMES = ("x", "first", "relu", "second", "add", "relu_1", "third", "scale", "size")


def test_kept_and_recomputed_batches_are_equal(network: fx.GraphModule, images: Tensor) -> None:
    kept = RecordedValues(network, images, NAMES, batch=4, limit_bytes=10**9)
    recomputed = RecordedValues(network, images, NAMES, batch=4, limit_bytes=0)
    assert kept.fits(NAMES) and not recomputed.fits(["add"])
    for ours, theirs in zip(
        kept.batches(["add", "size"]), recomputed.batches(["add", "size"]), strict=True
    ):
        assert torch.equal(ours["add"], theirs["add"])
        assert ours["size"] == theirs["size"] == len(ours["add"])
    (whole,) = kept.groups(["relu", "add"], 10**9)
    assert torch.equal(whole["add"], record(network, images, ["add"])["add"])
    an_image = 4 * 4 * 6 * 5
    assert kept.bytes_an_image["add"] == an_image
    for values, names, limit, count in (
        (kept, ["relu", "add"], 2 * an_image * 5, 8),
        (recomputed, ["relu"], 1, 4),
    ):
        (group,) = values.groups(names, limit)
        assert len(group["relu"]) == values.images_within(names, limit) == count


def test_what_was_asked_for_longest_ago_is_forgotten(
    network: fx.GraphModule, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_image = 4 * 4 * 6 * 5
    values = RecordedValues(network, images, NAMES, batch=4, limit_bytes=2 * an_image * 10)
    runs: list[list[str]] = []

    expected = [record(network, part, NAMES) for part in torch.split(images, 4)]
    run = Segment.__call__

    def counting(self: Segment, values: dict[str, object]) -> dict[str, object]:
        runs.append(sorted(self.wanted))
        return run(self, values)

    monkeypatch.setattr(Segment, "__call__", counting)

    def ask(*names: str) -> list[list[str]]:
        """Returns what had to be recorded, once for all three batches."""
        runs.clear()
        for batch, whole in zip(values.batches(names), expected, strict=True):
            assert all(torch.equal(batch[name], whole[name]) for name in names)
        assert runs[::3] == runs[1::3] == runs[2::3]
        return runs[::3]

    assert ask("first", "relu") == [["first", "relu"]]
    assert ask("relu", "second") == [["second"]]
    assert ask("relu") == []
    assert ask("first") == [["first"]]  # which makes room by forgetting "second"
    assert ask("relu") == []
    assert ask("second") == [["second"]]


def test_groups_join_batches(
    network: fx.GraphModule, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trt_layermerge.importance.values.GROUP_BYTES", 6 * 4 * 4 * 6 * 5)
    values = RecordedValues(network, images, NAMES, batch=2, limit_bytes=10**9)
    groups = list(values.groups(["add"], 10**9))
    assert [len(group["add"]) for group in groups] == [6, 4]
    joined = torch.cat([group["add"] for group in groups])
    assert torch.equal(joined, record(network, images, ["add"])["add"])


def test_batches_fit_a_cache() -> None:
    assert cached_batch([96 * 112 * 112 * 4, 1000]) == 3
    assert cached_batch([1 << 30]) == 1
    assert cached_batch([16]) == 64
