"""Which candidates may be worth a network of their own, before any latency is known."""

from __future__ import annotations

import pytest

from tests.search.graphs import Chain
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.search.sampling import in_portions, promising, sample_plans


def kernels(candidates: list[Candidate], start: int, end: int) -> set[int | None]:
    """Returns the kernel sizes by which a block may be replaced; None for nothing at all."""
    block = [c for c in candidates if (c.block.start, c.block.end) == (start, end)]
    return {c.spec.kernel[0] if c.spec else None for c in block}


def test_less_arithmetic_or_fewer_layers_at_little_more_of_it() -> None:
    graph = Chain(8, 16).conv(8, 3).conv(8, 3).conv(8, 3).graph()
    found = promising(graph, enumerate_candidates(graph))
    # Two 3x3 have 18 taps, one 5x5 has 25: fewer layers at 1.39 times the arithmetic.
    assert {3, 5} <= kernels(found, 0, 2)
    # Three 3x3 have 27 taps, one 7x7 has 49: 1.81 times as many.
    assert 7 in kernels(list(enumerate_candidates(graph)), 0, 3)
    assert 7 not in kernels(found, 0, 3) and 5 in kernels(found, 0, 3)


def test_what_changes_nothing_is_left_out() -> None:
    graph = Chain(8, 16).conv(8, 3).conv(8, 3).graph()
    found = promising(graph, enumerate_candidates(graph))
    assert found and not any(c.original for c in found)
    # A 3x3 in the place of one 3x3 saves neither arithmetic nor a layer.
    assert 3 not in kernels(found, 0, 1) and 3 not in kernels(found, 1, 2)


def plans_of(graph: LayerGraph, count: int) -> list[MergePlan]:
    return sample_plans(graph, enumerate_candidates(graph), count, 0)


@pytest.mark.parametrize(
    ("count", "sizes"), [(16, [8, 4, 4]), (17, [9, 4, 4]), (8, [8]), (14, [14]), (0, [0])]
)
def test_networks_are_measured_in_portions_half_of_them_first(count: int, sizes: list[int]) -> None:
    plans = plans_of(Chain(8, 16).conv(8, 3).conv(8, 3).conv(8, 3).graph(), count)
    portions = in_portions(plans)
    assert [len(portion) for portion in portions] == sizes
    places = [[next(i for i, p in enumerate(plans) if p is q) for q in part] for part in portions]
    assert sorted(place for part in places for place in part) == list(range(count))
    if len(sizes) > 1:
        assert sorted(places[0]) == list(range(1 - count % 2, count, 2))
