"""Graphs come back from their files; blocks are all those that skips and barriers allow."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.search.graphs import Chain
from trt_layermerge.core.graph import LayerGraph, load_graph, save_graph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Barrier, Block, Residual
from trt_layermerge.errors import CorruptInputError


def sample() -> LayerGraph:
    """Two segments, an identity and a projected residual, and a barrier."""
    chain = Chain(3, 32).conv(8, 3, 2).barrier()
    chain.conv(8, 3).conv(8, 3).residual(1).conv(16, 3, 2).conv(16, 1, activation=None).residual(3)
    barriers = (Barrier("pool", "pooling ends a segment"), Barrier("conv0", "why not", unit=0))
    return replace(chain.graph(), barriers=barriers, head_pointwise=4)


def test_a_graph_comes_back_whole(tmp_path: Path) -> None:
    save_graph(sample(), tmp_path / "graph.json")
    back = load_graph(tmp_path / "graph.json")
    assert back == sample()
    assert back.refusals == sample().barriers


def test_convolutions_are_counted_as_they_stand() -> None:
    graph = sample()
    assert len(graph.convs) == 6  # five units and the projection beside the last two
    assert graph.convs[:5] == tuple(unit.spec for unit in graph.units)
    assert graph.activation_count == 4
    single = Chain(8, 16).conv(16, 3).residual(0).graph()
    assert len(single.convs) == 2  # merged even untouched: the projection becomes part of the unit
    assert MergePlan.of(single, []).conv_count == 1


@pytest.mark.parametrize("field", ["units", "segments", "residuals", "barriers", "nodes", "spec"])
def test_a_missing_field_is_refused(tmp_path: Path, field: str) -> None:
    path = tmp_path / "graph.json"
    save_graph(sample(), path)
    path.write_text(path.read_text().replace(f'"{field}"', '"renamed"'))
    with pytest.raises(CorruptInputError, match=r"graph\.json is damaged"):
        load_graph(path)


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    save_graph(sample(), path)
    whole = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            load_graph(path)
        except CorruptInputError:
            refused += 1
    assert refused > 100


def test_residuals_by_hand() -> None:
    graph = sample()
    inner, outer = graph.residuals
    assert graph.residuals_inside(1, 5) == (inner, outer)
    assert graph.residuals_inside(2, 5) == (outer,)
    assert graph.open_residual(4, 5) is outer
    assert graph.open_residual(3, 5) is None  # it began with the block
    assert graph.open_residual(1, 2) is None  # nothing ends there
    assert outer.projections == (outer.shortcuts[0].spec,)
    assert inner.shortcuts[0].identity


def test_irreducible_units_change_the_shape() -> None:
    assert [u.irreducible for u in sample().units] == [True, False, False, True, False]


def random_graph(chance: random.Random) -> LayerGraph:
    """Returns up to nine equal units in two segments, with nested residuals at random."""
    chain, cut = Chain(4, 8), chance.randint(1, 4)
    for index in range(chance.randint(cut, 9)):
        chain.conv(4, 3)
        if index + 1 == cut:
            chain.barrier()
    graph = chain.graph()
    residuals: list[Residual] = []
    for _ in range(chance.randint(0, 4)):
        segment = chance.choice(graph.segments)
        start = chance.randrange(segment.start, segment.end)
        new = Residual(start, chance.randint(start + 1, segment.end), ())
        if all(nested(new, r) for r in residuals):
            residuals.append(new)
    return replace(graph, residuals=tuple(residuals))


def nested(a: Residual, b: Residual) -> bool:
    apart = a.end <= b.start or b.end <= a.start
    return apart or (
        (a.start <= b.start and b.end <= a.end) != (b.start <= a.start and a.end <= b.end)
    )


def test_blocks_are_exactly_those_without_a_partial_overlap() -> None:
    chance = random.Random(0)
    for _ in range(400):
        graph = random_graph(chance)
        expected = {
            Block(i, j)
            for s in graph.segments
            for i in range(s.start, s.end)
            for j in range(i + 1, s.end + 1)
            if not any(r.start < i < r.end < j or i < r.start < j < r.end for r in graph.residuals)
        }
        found = graph.blocks("full")
        assert list(found) == sorted(expected), graph.residuals
