"""Parts that are no residual branches: where they begin and end, and what may take their place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.tracing.test_barriers import Net, check
from tests.tracing.test_branches import gate, names, opaque
from trt_layermerge.core.graph import LayerGraph, load_graph, save_graph
from trt_layermerge.core.unit import Block, Branch
from trt_layermerge.kinds import enumerate_candidates

CONV = 4 * 4 * 9 * 8 * 9
"""Multiply-accumulates of a 3x3 convolution of four channels on the map of ``check``."""


def kinds(graph: LayerGraph, part: Branch) -> set[tuple[str, int]]:
    """Returns kind and kernel of what may replace a part; 0 where nothing remains."""
    return {
        (c.kind, c.convs[0].kernel[0] if c.convs else 0)
        for c in enumerate_candidates(graph)
        if (c.block.start, c.block.end) == (part.start, part.end) and not c.original
    }


def test_a_concatenation_of_branches_is_replaced_but_not_left_out() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        return m.head(torch.cat([m.b(x).relu(), m.d(m.c(x).relu()).relu()], 1).relu())

    graph = check(forward, head=nn.Conv2d(8, 4, 1))
    assert names(graph) == ["a", "b", "c", "d", "cat", "head"]
    assert graph.branches == (Branch(1, 5, "relu", None, (), 3 * CONV),)
    assert opaque(graph)[0].activation == "relu"
    # A dense 5x5 of twice the channels has 1.9 times the arithmetic, a 7x7 more than twice it.
    assert kinds(graph, graph.branches[0]) == {("fit", 1), ("fit", 3), ("fit", 5)}
    assert graph.wholes == ()


def test_two_branches_and_no_shortcut_are_a_region() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.b(x).relu() + m.c(x).relu()

    graph = check(forward)
    assert graph.branches == (Branch(1, 4, "a", "a", (), 2 * CONV),)
    assert kinds(graph, graph.branches[0]) == {
        ("fit", 1),
        ("fit", 3),
        ("fit", 5),
        ("identity", 0),
    }


def test_parts_of_a_map_that_join_again_begin_with_the_map() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        left, right = m.a(x).split(2, 1)
        return m.b(torch.cat([left, m.side(right).relu()], 1))

    graph = check(forward, side=nn.Conv2d(2, 2, 3, padding=1))
    (region,) = graph.branches
    assert (region.start, region.end, region.source) == (1, 3, "a")


def test_a_gate_can_go_and_is_not_replaced_by_more_work() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        return m.b(x * m.gate(x.mean((2, 3), keepdim=True)).sigmoid())

    graph = check(forward, gate=gate())
    (region,) = graph.branches
    assert (region.start, region.end, region.source, region.macs) == (1, 3, "relu", 16)
    assert kinds(graph, region) == {("identity", 0)}


class Gated(nn.Module):
    """A convolution, a gate and a convolution, without a shortcut."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.up = nn.Conv2d(4, 8, 3, 2, 1)
        self.gate = nn.Conv2d(8, 8, 1)
        self.down = nn.Conv2d(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x).relu()
        return self.down(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())


def test_a_module_around_a_gate_is_replaced_whole_and_merges_with_its_neighbours(
    tmp_path: Path,
) -> None:
    graph = check(lambda m, x: m.c(m.block(m.b(m.a(x)))), block=Gated())
    assert names(graph) == ["a", "b", "block.up", "block.gate", "mul", "block.down", "c"]
    (whole,) = graph.wholes
    macs = (4 * 8 * 9 + 8 * 4) * 4 * 5 + 64
    assert whole == Branch(2, 6, "b", None, (), macs)
    # The gate alone is a unit; the block is none, so runs that cross its ends stay.
    assert [(s.start, s.end) for s in graph.segments] == [(0, 3), (3, 4), (4, 5), (5, 7)]
    assert kinds(graph, whole) == {("fit", 1), ("fit", 3), ("fit", 5)}
    assert graph.branch_at(Block(2, 6)) == whole
    save_graph(graph, tmp_path / "graph.json")
    assert load_graph(tmp_path / "graph.json") == graph


def test_a_module_that_is_read_inside_is_not_whole() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.block.up(m.a(x))
        y = m.block.down(x * m.block.gate(x.mean((2, 3), keepdim=True)).sigmoid())
        return torch.cat([x, m.side(y)], 1)

    graph = check(forward, block=Gated(), side=nn.Conv2d(4, 4, 1))
    assert graph.wholes == ()


def larger(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    return torch.cat([m.b(x).repeat(1, 1, 2, 2), m.c(x).repeat(1, 1, 2, 2)], 1)


def read_outside(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    y = m.b(x).relu()
    joined = torch.cat([y, m.c(x)], 1)
    return torch.cat([joined.amax(1, keepdim=True), y.mean(1, keepdim=True)], 2)


def nothing_inside(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    return torch.cat([x, x.relu()], 1)


@pytest.mark.parametrize("forward", [larger, read_outside, nothing_inside])
def test_what_is_no_region(forward: Callable[[Net, Tensor], Tensor]) -> None:
    assert check(forward).branches == ()


def test_most_of_a_network_is_no_region() -> None:
    class Deep(nn.Module):
        def __init__(self, convs: int) -> None:
            super().__init__()
            self.row = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(convs)))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.row(x)], 1)

    for convs, found in ((16, 1), (17, 0)):
        graph = check(lambda m, x: m.deep(m.a(x)), deep=Deep(convs))
        assert len(graph.branches) == found


def test_a_scaled_shortcut_remains_beside_a_branch() -> None:
    """As in MetaFormer, which scales both by learned values."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.GroupNorm(1, 4), nn.Conv2d(4, 4, 1)
            self.scale = nn.Parameter(torch.linspace(0.5, 2, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale.view(4, 1, 1) + self.conv(self.norm(x)).relu()

    graph = check(lambda m, x: m.b(m.scaled(m.a(x))), scaled=Scaled())
    (branch,) = graph.branches
    assert (branch.source, branch.macs, len(branch.remains)) == ("a", None, 1)
    assert kinds(graph, branch) >= {("identity", 0)}
