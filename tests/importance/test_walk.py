"""Values asked for in order are those of a whole run, and the network runs once for all of them."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from tests.importance.branched import NAMES
from trt_layermerge.merge.segments import Segment, Walk, record

IN_ORDER = ("first", "relu", "second", "add", "third")


@pytest.fixture
def run_nodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of convolutions as they are computed."""
    found: list[str] = []
    run = Segment.__call__

    def noting(self: Segment, values: dict[str, Any]) -> dict[str, Any]:
        found.extend(n.name for n in self.module.graph.nodes if n.op == "call_module")
        return run(self, values)

    monkeypatch.setattr(Segment, "__call__", noting)
    return found


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_values_are_those_of_a_whole_run(
    network: fx.GraphModule, images: Tensor, limit: int
) -> None:
    walk = Walk(network, images.split(4), limit_bytes=limit)
    whole = record(network, images, NAMES)
    for name in IN_ORDER:
        for _ in range(2):  # it may be asked for again
            assert torch.equal(torch.cat([*walk.at(name)]), whole[name])
    assert torch.equal(torch.cat([*walk.at("relu")]), whole["relu"])  # and out of order


def test_every_convolution_runs_once(
    network: fx.GraphModule, images: Tensor, run_nodes: list[str]
) -> None:
    walk = Walk(network, [images])
    for name in IN_ORDER:
        list(walk.at(name))
    assert sorted(run_nodes) == sorted(set(run_nodes)) == ["first", "second", "third"]
    run_nodes.clear()
    forgetful = Walk(network, [images], limit_bytes=0)
    for name in IN_ORDER:
        list(forgetful.at(name))
    assert run_nodes.count("first") > 1


def test_values_leave_batch_by_batch(network: fx.GraphModule, images: Tensor) -> None:
    """Never more than what later ones follow from is held: not those of before as well."""
    walk = Walk(network, images.split(4))
    before = [weakref.ref(value) for value in walk.at("first")]
    following = walk.at("second")
    next(following)
    assert [value() is None for value in before] == [True] + [False] * (len(before) - 1)
    list(following)
    assert all(value() is None for value in before)


def test_what_changes_behind_a_value_counts(network: fx.GraphModule, images: Tensor) -> None:
    """A block is fitted once its input is known; what follows is computed by the fitted one."""
    walk = Walk(network, [images])
    list(walk.at("relu"))
    with torch.no_grad():
        network.get_submodule("second").weight.mul_(2)
    assert torch.equal(next(walk.at("add")), record(network, images, ["add"])["add"])


def test_a_value_that_there_is_not(network: fx.GraphModule, images: Tensor) -> None:
    with pytest.raises(KeyError, match="nothing"):
        list(Walk(network, [images]).at("nothing"))
