"""Recording and recomputing values equals running the whole network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from trt_layermerge.importance.values import (
    RecordedValues,
    cached_batch,
    finish,
    record,
    rest_of,
)


class Branched(nn.Module):
    """A residual, a value that depends on the batch size, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 4, 1)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.relu(self.first(x))
        b = self.second(a) + a
        c = self.third(torch.relu(b)) * self.scale
        return c.reshape(x.size(0), -1), a.mean((2, 3))


@pytest.fixture
def network() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(Branched().eval())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(10, 3, 6, 5, generator=torch.Generator().manual_seed(1))


NAMES = ("x", "first", "relu", "second", "add", "relu_1", "third", "scale", "size")


def test_record_gives_the_values_of_a_whole_run(network: fx.GraphModule, images: Tensor) -> None:
    values = record(network, images, NAMES)
    own = network.get_submodule
    with torch.no_grad():
        a = torch.relu(own("first")(images))
        b = own("second")(a) + a
    assert set(values) == set(NAMES)
    assert torch.equal(values["x"], images)
    assert torch.equal(values["relu"], a)
    assert torch.equal(values["add"], b)
    assert values["size"] == 10
    assert not values["add"].requires_grad


@pytest.mark.parametrize("name", ["x", "first", "relu", "second", "add", "third"])
def test_finish_equals_a_whole_run(network: fx.GraphModule, images: Tensor, name: str) -> None:
    rest = rest_of(network, name)
    values = record(network, images, {*rest.needed, name})
    with torch.no_grad():
        expected = network(images)
    found = finish(network, rest, values)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    values[name] = values[name] + 1
    changed = finish(network, rest, values)
    assert not torch.equal(changed[0], expected[0])


def test_only_what_depends_is_run(network: fx.GraphModule) -> None:
    rest = rest_of(network, "add")
    assert [n.name for n in rest.nodes] == ["relu_1", "third", "mul", "reshape", "output"]
    assert rest.needed == {"scale", "size", "mean"}
    with pytest.raises(KeyError):
        rest_of(network, "absent")


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

    def counting(network: fx.GraphModule, part: Tensor, names: list[str]) -> dict[str, object]:
        runs.append(sorted(names))
        return record(network, part, names)

    monkeypatch.setattr("trt_layermerge.importance.values.record", counting)

    def ask(*names: str) -> list[list[str]]:
        """Returns what had to be recorded, once for all three batches."""
        runs.clear()
        for batch, part in zip(values.batches(names), torch.split(images, 4), strict=True):
            for name in names:
                assert torch.equal(batch[name], record(network, part, [name])[name])
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
