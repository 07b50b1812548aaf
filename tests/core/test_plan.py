"""A plan has one candidate for every unit, without gaps or overlaps, and comes back whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.search.graphs import Chain
from trt_layermerge.core.candidate import Candidate, finish, merged_spec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Block
from trt_layermerge.errors import CorruptInputError, UsageError

GRAPH = Chain(8, 16).conv(8, 3).conv(8, 3).conv(8, 3).residual(1).conv(16, 3, 2).graph()


def composed(graph: LayerGraph, start: int, end: int, *kept: int) -> Candidate:
    block = Block(start, end)
    return finish(graph, block, "compose", kept, (merged_spec(graph, block, kept),))


def test_the_rest_is_filled_with_untouched_units() -> None:
    merged = composed(GRAPH, 1, 3, 1, 2)
    plan = MergePlan.of(GRAPH, [merged])
    assert [c.block for c in plan.candidates] == [Block(0, 1), Block(1, 3), Block(3, 4)]
    assert plan.changed == (merged,)
    assert (plan.conv_count, plan.activation_count) == (3, 3)


def test_an_empty_plan_is_the_untouched_network() -> None:
    plan = MergePlan.of(GRAPH, [])
    assert (plan.conv_count, plan.activation_count) == (4, 4)
    assert all(c.original for c in plan.candidates)
    assert plan.candidates[2].spec == GRAPH.units[2].spec


def test_a_surviving_projection_counts_as_a_convolution() -> None:
    graph = Chain(8, 16).conv(16, 3).conv(16, 3).residual(0).graph()
    assert MergePlan.of(graph, []).conv_count == 3
    assert MergePlan.of(graph, [composed(graph, 0, 2, 0, 1)]).conv_count == 1


def test_overlaps_and_foreign_units_are_refused() -> None:
    with pytest.raises(UsageError, match="overlap at unit 1"):
        MergePlan.of(GRAPH, [composed(GRAPH, 0, 2, 0, 1), composed(GRAPH, 1, 3, 1, 2)])
    for block in (Block(3, 5), Block(9, 11)):
        foreign = replace(composed(GRAPH, 1, 3, 1, 2), block=block)
        with pytest.raises(UsageError, match=f"unit {block.end - 1} is not in a graph of 4 units"):
            MergePlan.of(GRAPH, [foreign])


def test_a_plan_comes_back_whole(tmp_path: Path) -> None:
    plan = replace(
        MergePlan.of(GRAPH, [composed(GRAPH, 1, 3, 2)]),
        latency_ms=1.25,
        score=-0.5,
        budget_ms=1.5,
        notes={"seed": 3},
    )
    plan.save(tmp_path / "plan.json")
    assert MergePlan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("field", ["candidates", "kept", "convs", "budget_ms", "kernel"])
def test_a_missing_field_is_refused(tmp_path: Path, field: str) -> None:
    path = tmp_path / "plan.json"
    MergePlan.of(GRAPH, []).save(path)
    path.write_text(path.read_text().replace(f'"{field}"', '"renamed"'))
    with pytest.raises(CorruptInputError, match=r"plan\.json is damaged"):
        MergePlan.load(path)


def test_the_activation_inside_a_linear_block_moves_to_its_end() -> None:
    graph = Chain(8, 16).conv(8, 3).conv(8, 1, activation=None).graph()
    assert composed(graph, 0, 2, 0, 1).activation == "relu"
    assert composed(graph, 1, 2, 1).activation is None


def test_a_branch_that_keeps_nothing_leaves_the_addition_of_an_open_residual() -> None:
    graph = Chain(8, 16).conv(8, 3).conv(8, 3).residual(0).graph()
    rest = finish(graph, Block(1, 2), "identity", (), ())
    assert rest.spec is None
    assert [str(s) for s in rest.extras] == ["add 8 @16x16 relu"]
    whole = finish(graph, Block(0, 2), "identity", (), ())
    assert (whole.costs, whole.activation, whole.nonlinear) == ((), None, False)
