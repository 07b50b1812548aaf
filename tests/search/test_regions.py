"""What parts that are no residual branches cost, and that the search takes them as it should."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests import nets
from tests.search.test_branches import assert_frontier, table
from trt_layermerge.core.candidate import left_out, original_candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.kinds import enumerate_candidates, refusal
from trt_layermerge.tracing import trace


class Gated(nn.Module):
    """A convolution, a gate with one of its own, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.down = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x).relu()
        gate = self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.down(x * gate)


class Joined(nn.Module):
    """A gated module, and a concatenation around another one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), Gated(), Gated()
        self.side, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        return self.head(torch.cat([self.second(x).relu(), self.side(x).relu()], 1))


def graph() -> LayerGraph:
    return trace(nets.randomise(Joined()), nets.example(size=8))


def test_regions_within_regions_are_counted_once() -> None:
    network = graph()
    gates, outer = network.branches[:2], network.branches[2]
    assert [b.end - b.start for b in gates] == [2, 2]
    assert outer.start < gates[1].start and gates[1].end < outer.end
    assert len(network.wholes) == 2
    latency = table((), network)
    for part, ms in ((outer, 3.0), (gates[0], 3.0)):
        units = [original_candidate(network, i) for i in range(part.start, part.end)]
        assert abs(sum(latency.cost_ms(c, "fp32", 1) for c in units) - ms) < 1e-12


def test_the_activation_of_a_gate_does_not_move_to_the_end_of_a_block() -> None:
    network = graph()
    fits = [c for c in enumerate_candidates(network) if c.kind == "fit" and len(c.block) == 4]
    assert fits and {c.activation for c in fits} == {"relu"}


def test_what_changes_the_shape_of_the_map_cannot_be_left_out() -> None:
    network = graph()
    outer = network.branches[2]
    assert outer.shortcut is None
    reason = refusal(network, left_out(network, outer, "identity"))
    assert reason is not None and "nothing of the shape" in reason


def test_the_frontier_is_that_of_every_plan() -> None:
    network = graph()
    parts = [*network.branches, *network.wholes]
    found = [
        c
        for c in enumerate_candidates(network)
        if any((c.block.start, c.block.end) == (p.start, p.end) for p in parts) and not c.original
    ]
    assert {c.kind for c in found} == {"fit", "identity"}
    assert {len(c.block) for c in found if c.kind == "identity"} == {2, 4}
    assert_frontier(network, found)
