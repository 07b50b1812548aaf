"""Which candidates are offered: the published counts, and the kinds by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import nn

from tests.search.graphs import Chain, mobilenet_v2, resnet34, resnet50
from trt_layermerge.core.candidate import Candidate, merged_spec
from trt_layermerge.core.conv import AddSpec, ConvSpec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Block
from trt_layermerge.kinds import Limits, enumerate_candidates, judged_candidates, refusal
from trt_layermerge.merge import certify, collapse, relax
from trt_layermerge.tracing import trace


def of_block(candidates: tuple[Candidate, ...], start: int, end: int) -> list[Candidate]:
    return [c for c in candidates if c.block == Block(start, end)]


def basic() -> LayerGraph:
    """A stem and two basic residual blocks, all 3x3, 8 channels on 16x16."""
    chain = Chain(3, 16).conv(8, 3)
    for _ in range(2):
        start = len(chain.units)
        chain.conv(8, 3).conv(8, 3).residual(start)
    return chain.graph()


@pytest.mark.parametrize(
    ("network", "blocks", "entries", "longest"),
    [(resnet34, 62, 150, 10), (resnet50, 107, 192, 15), (mobilenet_v2, 171, 391, 21)],
)
def test_paper_rules_reproduce_the_published_counts(
    network: Callable[[], LayerGraph], blocks: int, entries: int, longest: int
) -> None:
    graph = network()
    assert len(graph.blocks("paper")) == blocks
    assert max(len(b) for b in graph.blocks("paper")) == longest
    candidates = enumerate_candidates(graph, "paper")
    assert len(candidates) == entries
    assert {c.kind for c in candidates} == {"compose"}


@pytest.mark.parametrize("network", [resnet34, resnet50, mobilenet_v2])
@pytest.mark.parametrize("rules", ["paper", "full"])
def test_no_block_overlaps_a_skip_in_part(network: Callable[[], LayerGraph], rules: str) -> None:
    graph = network()
    blocks = graph.blocks(rules)  # type: ignore[arg-type]
    assert len(set(blocks)) == len(blocks)
    for block in blocks:
        for r in graph.residuals:
            apart = block.end <= r.start or r.end <= block.start
            inside = r.start <= block.start and block.end <= r.end
            around = block.start <= r.start and r.end <= block.end
            assert apart or inside or around, (block, r)
        assert any(s.start <= block.start and block.end <= s.end for s in graph.segments)


def test_full_rules_allow_every_block_that_overlaps_no_skip_in_part() -> None:
    graph = resnet50()
    expected = {
        Block(start, end)
        for s in graph.segments
        for start in range(s.start, s.end)
        for end in range(start + 1, s.end + 1)
        if all(
            end <= r.start
            or r.end <= start
            or (r.start <= start and end <= r.end)
            or (start <= r.start and r.end <= end)
            for r in graph.residuals
        )
    }
    assert set(graph.blocks("full")) == expected


def test_kept_subset_is_the_heaviest_of_those_that_merge_alike() -> None:
    graph = basic()
    units = tuple(
        replace(u, weight_l1=w) for u, w in zip(graph.units, (1, 5, 2, 9, 3), strict=True)
    )
    graph = replace(graph, units=units)
    block = Block(1, 5)
    for candidate in of_block(enumerate_candidates(graph, "paper"), 1, 5):
        alike = [
            kept
            for n in range(1, 5)
            for kept in combinations(range(1, 5), n)
            if merged_spec(graph, block, kept).bare() == candidate.convs[0].bare()
        ]
        assert candidate.kept == max(alike, key=lambda kept: sum(units[i].weight_l1 for i in kept))


def test_compose_extents_add_up() -> None:
    options = of_block(enumerate_candidates(basic(), "paper"), 1, 3)
    assert sorted((c.kept, c.convs[0].kernel, c.convs[0].padding) for c in options) == [
        ((1, 2), (5, 5), (2, 2, 2, 2)),
        ((2,), (3, 3), (1, 1, 1, 1)),
    ]


def test_a_block_that_ends_an_open_residual_pays_for_the_addition() -> None:
    graph = basic()
    found = of_block(enumerate_candidates(graph, "full"), 2, 3)
    original = next(c for c in found if c.original)
    removed = next(c for c in found if c.kind == "identity")
    assert original.convs[0].residual and original.extras == ()
    assert removed.convs == () and removed.extras == (AddSpec(8, 16, 16, "relu"),)


def test_a_projection_is_paid_by_the_block_that_ends_beside_it() -> None:
    graph = Chain(3, 16).conv(8, 3).conv(16, 3, 2).conv(16, 3).residual(1).graph()
    (projection,) = graph.residuals[0].projections
    candidates = enumerate_candidates(graph, "full")
    assert of_block(candidates, 2, 3)[0].extras == (projection,)
    assert of_block(candidates, 1, 2)[0].extras == ()
    assert all(c.extras == () for c in of_block(candidates, 1, 3))


def test_removing_a_branch_leaves_its_shortcut() -> None:
    identity = basic()
    (gone,) = (c for c in of_block(enumerate_candidates(identity), 1, 3) if c.kind == "identity")
    assert gone.convs == gone.extras == () and gone.activation is None and gone.spec is None

    projected = Chain(3, 16).conv(8, 3).conv(16, 3, 2).conv(16, 3).residual(1).graph()
    (left,) = (c for c in of_block(enumerate_candidates(projected), 1, 3) if c.kind == "identity")
    assert left.spec is not None
    assert left.spec.kernel == (1, 1) and left.spec.stride == (2, 2) and left.activation == "relu"


def test_fitted_kernels_are_centred_on_the_block_they_replace() -> None:
    graph = Chain(3, 16).conv(8, 3).conv(16, 3, 2).conv(16, 3).residual(1).graph()
    fits = [c for c in of_block(enumerate_candidates(graph), 1, 3) if c.kind == "fit"]
    assert [c.convs[0].kernel for c in fits] == [(1, 1), (3, 3), (5, 5), (7, 7)]
    for candidate in fits:
        spec = candidate.convs[0]
        assert spec.stride == (2, 2) and spec.out_size == (8, 8)
        # Output pixel 0 of the strided 3x3 with padding 1 is centred on input pixel 0.
        assert spec.padding[:2] == ((spec.kernel[0] - 1) // 2,) * 2


@pytest.mark.parametrize("network", [resnet34, resnet50, mobilenet_v2])
def test_single_units_are_not_fitted(network: Callable[[], LayerGraph]) -> None:
    wide = Limits(max_units=3, max_kernel=13, kernels=(1, 3, 5, 7, 9, 11, 13))
    for limits in (None, wide):
        offered = enumerate_candidates(network(), "full", limits)
        fits = [c for c in offered if c.kind == "fit"]
        assert fits and min(len(c.block) for c in fits) == 2
        # What is left for a unit alone: itself, or nothing.
        single = {c.kind for c in offered if len(c.block) == 1 and not c.original}
        assert single == {"identity"}


def test_depthwise_fits_are_offered_where_the_block_has_a_depthwise_part() -> None:
    inverted = Chain(8, 16).conv(8, 3).conv(32, 1).conv(32, 3, depthwise=True)
    graph = inverted.conv(8, 1, activation=None).residual(1).graph()
    shapes = {
        (c.convs[0].kernel, c.convs[0].depthwise)
        for c in of_block(enumerate_candidates(graph), 1, 4)
        if c.kind == "fit"
    }
    assert shapes == {((1, 1), False), ((3, 3), False), ((1, 1), True), ((3, 3), True)}


def test_a_merged_linear_bottleneck_gains_an_activation_and_a_single_one_does_not() -> None:
    chain = Chain(8, 16).conv(32, 1, activation="relu6").conv(8, 1, activation=None)
    candidates = enumerate_candidates(chain.graph(), "paper")
    graph_candidates = {c.block: c for c in candidates}
    assert Block(1, 2) in graph_candidates and graph_candidates[Block(1, 2)].activation is None
    full = enumerate_candidates(chain.graph(), "full")
    assert {c.activation for c in of_block(full, 0, 2)} == {"relu6"}


def test_of_several_inner_activations_the_last_moves_to_the_end_of_a_block() -> None:
    chain = Chain(8, 16).conv(8, 3, activation="relu").conv(8, 3, activation="silu")
    chain.conv(8, 1, activation=None)
    found = of_block(enumerate_candidates(chain.graph(), "full"), 0, 3)
    merged = [c for c in found if c.convs]
    assert {c.kind for c in merged} == {"compose", "fit"}
    assert {c.activation for c in merged} == {"silu"}


def test_limits_bound_the_full_rules() -> None:
    tight = enumerate_candidates(
        resnet34(), "full", Limits(max_units=2, max_kernel=3, kernels=(3,))
    )
    assert max(len(c.block) for c in tight) == 2
    merged = [c for c in tight if not c.original]
    assert all(isinstance(s, ConvSpec) and max(s.kernel) <= 3 for c in merged for s in c.convs)


def test_keys_are_unique() -> None:
    candidates = enumerate_candidates(mobilenet_v2(), "full")
    assert len({c.key for c in candidates}) == len(candidates)


class Wide(nn.Module):
    """Residuals whose 3x3 projection outlives a dropped 5x5 branch, behind a dilated 1x1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(4, 4, 1, dilation=2)
        self.branch = nn.Conv2d(4, 4, 5, padding=2)
        self.path = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 4, (1, 3), padding=(0, 2), dilation=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.stem(x))
        return self.last(torch.relu(self.branch(y) + self.path(y)))


def test_what_shortcuts_leave_behind_is_stated_and_every_candidate_can_be_built() -> None:
    model, x = Wide().eval(), torch.randn(1, 4, 9, 9)
    graph = trace(model, x)
    found = enumerate_candidates(graph)
    assert all(refusal(graph, c) is None for c in found)
    by_kept = {(c.block.start, c.block.end, c.kept): c for c in found if c.kind == "compose"}
    without_branch = by_kept[0, 2, (0,)].convs[0]
    assert (without_branch.kernel, without_branch.padding) == ((3, 3), (1, 1, 1, 1))
    assert by_kept[0, 2, (0, 1)].convs[0].kernel == (5, 5)
    assert by_kept[0, 1, (0,)].convs[0].dilation == (1, 1)
    last = by_kept[2, 3, (2,)].convs[0]
    assert (last.kernel, last.dilation) == ((1, 3), (1, 2))
    for candidate in found:
        relaxed = relax(model, graph, MergePlan.of(graph, [candidate]))
        assert certify(relaxed, collapse(relaxed), x).ok, candidate


def test_refused_candidates_are_judged_but_not_offered() -> None:
    graph = mobilenet_v2()
    judged = list(judged_candidates(graph, "full", None))
    assert tuple(c for c, why in judged if why is None) == enumerate_candidates(graph)
    assert all(why == refusal(graph, c) for c, why in judged if not c.original)
