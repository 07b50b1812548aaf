"""Residual branches that are not understood: found where they are, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests import nets
from tests.tracing.test_barriers import Net, check
from trt_layermerge.core.conv import ConvSpec, PieceSpec
from trt_layermerge.core.graph import LayerGraph, load_graph, save_graph
from trt_layermerge.core.unit import Block, Branch, OpaqueUnit
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.tracing import trace


def gated(m: Net, x: Tensor) -> Tensor:
    """A convolution, a gate over channels, a convolution, and the input beside them."""
    y = m.b(x).relu()
    return m.c(y * m.gate(y.mean((2, 3), keepdim=True)).sigmoid()) + x


def gate() -> nn.Module:
    return nn.Conv2d(4, 4, 1)


def names(graph: LayerGraph) -> list[str]:
    return [unit.name for unit in graph.units]


def opaque(graph: LayerGraph) -> list[OpaqueUnit]:
    return [unit for unit in graph.units if isinstance(unit, OpaqueUnit)]


def test_a_gated_branch_is_one_unit_behind_its_convolutions() -> None:
    graph = check(lambda m, x: m.d(gated(m, m.a(x)).relu()), gate=gate())
    assert names(graph) == ["a", "b", "gate", "mul", "c", "add", "d"]
    assert graph.branches[1:] == (Branch(1, 6, "a", "a"),)
    unit = opaque(graph)[-1]
    assert (unit.index, unit.activation) == (5, "relu")
    assert [(s.start, s.end) for s in graph.segments] == [(i, i + 1) for i in range(7)]
    assert graph.blocks("full")[:4] == (Block(0, 1), Block(1, 2), Block(1, 6), Block(2, 3))
    assert Block(1, 6) not in graph.blocks("paper")
    assert {c.kind for c in enumerate_candidates(graph) if c.block == Block(1, 6)} == {
        "fit",
        "identity",
    }


def test_runs_inside_a_branch_still_merge() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        y = m.c(m.b(x))
        return m.d(x + y * m.gate(y.mean((2, 3), keepdim=True)).sigmoid())

    graph = check(forward, gate=gate())
    assert names(graph) == ["a", "b", "c", "gate", "mul", "add", "d"]
    blocks = {c.block for c in enumerate_candidates(graph) if len(c.block) > 1}
    assert blocks == {Block(1, 3), Block(1, 6), Block(3, 5)}


def test_an_activation_before_the_addition_makes_a_branch() -> None:
    graph = check(lambda m, x: m.d((y := m.a(x)) + m.b(y).relu()))
    assert names(graph) == ["a", "b", "add", "d"]
    assert graph.branches == (Branch(1, 3, "a", "a"),)


def test_a_projection_remains_beside_a_branch() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        y = m.b(x).relu()
        return m.c(y * y.mean((2, 3), keepdim=True)) + m.side(x)

    graph = check(forward, side=nn.Conv2d(4, 4, 1))
    (branch,) = graph.branches
    assert names(graph) == ["a", "b", "c", "side", "add"]
    assert (branch.start, branch.end, branch.shortcut) == (1, 5, "side")
    assert branch.remains == (graph.units[3].spec,)
    assert isinstance(branch.remains[0], ConvSpec)


def test_what_pools_and_projects_beside_a_branch_remains_as_a_piece() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        y = m.down(x).relu()
        return m.c(y * y.mean((2, 3), keepdim=True)) + m.side(m.pool(x))

    graph = check(
        forward,
        down=nn.Conv2d(4, 4, 3, 2, 1),
        side=nn.Conv2d(4, 4, 1),
        pool=nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    )
    (branch,) = graph.branches
    (piece,) = branch.remains
    assert isinstance(piece, PieceSpec)
    assert (piece.height, piece.width, piece.out_size) == (8, 9, (4, 5))


def test_a_branch_without_a_convolution_is_a_unit_by_itself() -> None:
    graph = check(lambda m, x: m.b((y := m.a(x)) + m.norm(y).relu()), norm=nn.GroupNorm(2, 4))
    assert names(graph) == ["a", "add", "b"]
    assert graph.branches == (Branch(1, 2, "a", "a"),)
    kinds = [c.kind for c in enumerate_candidates(graph) if c.block == Block(1, 2)]
    assert sorted(set(kinds)) == ["compose", "fit", "identity"]


def test_branches_inside_branches() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        inner = m.norm(x).relu() + x
        return m.d(m.b(inner).relu() + x)

    graph = check(forward, norm=nn.GroupNorm(2, 4))
    assert names(graph) == ["a", "add", "b", "add_1", "d"]
    assert [(b.start, b.end) for b in graph.branches] == [(1, 2), (1, 4)]


def test_what_is_read_outside_is_no_branch() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        y = m.b(x).relu()
        return m.c(x + y) + y

    # The second sum is a region: all that comes of the stem.
    assert [(b.start, b.end, b.macs) for b in check(forward).branches] == [(1, 4, 2 * 144 * 72)]


def test_a_sum_of_two_inputs_has_no_branch() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.a(x).relu() + self.b(y).relu()

    x = nets.example(size=8)
    assert trace(Two(), (x, x)).branches == ()


def piece(**settings: object) -> PieceSpec:
    seed = settings.pop("seed", 0)
    assert isinstance(seed, int)
    torch.manual_seed(seed)
    size = settings.pop("size", 8)
    assert isinstance(size, int)
    kernel = settings.pop("kernel", 3)
    assert isinstance(kernel, int)
    pool = nn.MaxPool2d(kernel, 1, kernel // 2, **settings)  # type: ignore[arg-type]
    net = Net(lambda m, x: m.d((y := m.a(x)) + m.b(m.pool(y)).relu()), pool=pool)
    (unit,) = opaque(trace(net.eval(), nets.example(size=size)))
    return unit.spec


def test_equal_pieces_are_equal_whatever_their_weights() -> None:
    assert piece() == piece(seed=1)


def test_a_network_in_double_has_the_pieces_that_it_has_in_float() -> None:
    model = nets.randomise(Net(lambda m, x: m.d(gated(m, m.a(x))), gate=gate()))
    single = trace(model, nets.example(size=8))
    assert trace(model.double(), nets.example(size=8).double()).branches == single.branches
    assert opaque(trace(model, nets.example(size=8).double())) == opaque(single)


@pytest.mark.parametrize("settings", [{"kernel": 5}, {"ceil_mode": True}, {"size": 10}], ids=str)
def test_pieces_of_other_settings_differ(settings: dict[str, object]) -> None:
    assert piece(**settings) != piece()


def test_equal_branches_of_one_network_are_timed_once() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        x = x + m.b(x).relu()
        return x + m.c(x).relu()

    first, second = opaque(check(forward))
    assert first.spec == second.spec


def test_a_graph_with_branches_survives_its_file(tmp_path: Path) -> None:
    graph = check(lambda m, x: m.d(gated(m, m.a(x)).relu()), gate=gate())
    save_graph(graph, tmp_path / "graph.json")
    assert load_graph(tmp_path / "graph.json") == graph
