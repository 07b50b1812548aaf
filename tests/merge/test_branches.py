"""Branches that are left out or replaced whole, against the network edited by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests import nets
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.merge import certify, collapse, relax, repair
from trt_layermerge.tracing import trace

timm = pytest.importorskip("timm")


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return nets.randomise(timm.create_model(name, num_classes=5)).double()


def images(batch: int = 2, seed: int = 0) -> Tensor:
    return nets.example(size=48, batch=batch, seed=seed).double()


def of_branches(graph: LayerGraph, *, fit: bool) -> list[Candidate]:
    found = enumerate_candidates(graph)
    branches = {(b.start, b.end) for b in graph.branches if b.macs is None}
    return [
        c
        for c in found
        if (c.block.start, c.block.end) in branches and not c.original and bool(c.convs) == fit
    ]


def without_branch(block: nn.Module) -> None:
    """Makes a timm residual block hand on its shortcut, its activation behind a projection."""

    def forward(x: Tensor) -> Tensor:
        if getattr(block, "downsample", None) is None:
            return x
        return block.act2(block.downsample(x))

    block.forward = forward


def assert_merges(model: nn.Module, graph: LayerGraph, plan: MergePlan, expected: Tensor) -> None:
    """Checks relaxed and merged network against an output, to 1e-10 of its largest value."""
    relaxed = relax(model, graph, plan)
    merged = collapse(relaxed)
    for found in (relaxed(images(seed=1)), merged(images(seed=1))):
        assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert certify(relaxed, merged, images()).ok


@torch.no_grad()
@pytest.mark.parametrize("place", range(8))
def test_a_branch_left_out_leaves_its_shortcut(place: int) -> None:
    model = network("seresnet18")
    graph = trace(model, images())
    candidate = of_branches(graph, fit=False)[place]
    edited = network("seresnet18")
    without_branch(edited.get_submodule(f"layer{place // 2 + 1}.{place % 2}"))
    assert_merges(model, graph, MergePlan.of(graph, [candidate]), edited(images(seed=1)))


@torch.no_grad()
@pytest.mark.parametrize("order", [sorted, lambda found: sorted(found, reverse=True)])
def test_neighbouring_branches_are_left_out_together(
    order: Callable[[list[int]], list[int]],
) -> None:
    model, edited = network("convnext_atto"), network("convnext_atto")
    graph = trace(model, images())
    chosen = order([2, 3, 4, 5])
    found = of_branches(graph, fit=False)
    for stage, block in ((1, 0), (1, 1), (2, 0), (2, 1)):
        edited.stages[stage].blocks[block] = nn.Identity()
    plan = MergePlan.of(graph, [found[i] for i in chosen])
    assert_merges(model, graph, plan, edited(images(seed=1)))


@torch.no_grad()
def test_what_merges_inside_a_branch_and_a_branch_behind_it() -> None:
    model = network("efficientnet_b0")
    graph = trace(model, images())
    first, second = [b for b in graph.branches if b.macs is None][1:3]
    inner = [
        c
        for c in enumerate_candidates(graph)
        if first.start <= c.block.start
        and c.block.end < first.end
        and not c.original
        and c.kind == "identity"
    ]
    removal = next(c for c in of_branches(graph, fit=False) if c.block.start == second.start)
    plan = MergePlan.of(graph, [inner[0], removal])
    relaxed = relax(model, graph, plan)
    assert certify(relaxed, collapse(relaxed), images()).ok


@torch.no_grad()
def test_a_branch_may_become_one_fitted_convolution() -> None:
    model = network("seresnet18")
    graph = trace(model, images())
    candidates = {c.block: c for c in of_branches(graph, fit=True) if c.convs[0].kernel == (3, 3)}
    third = [b for b in graph.branches if b.macs is None][2]
    strided = candidates[next(b for b in candidates if b.start == third.start)]
    plan = MergePlan.of(graph, [strided])
    relaxed = relax(model, graph, plan)
    wanted = model(images(seed=1))
    before = (relaxed(images(seed=1)) - wanted).square().mean()
    repair(relaxed, model, [images(batch=64, seed=2)])
    after = (relaxed(images(seed=1)) - wanted).square().mean()
    assert after < 0.5 * before
    merged = collapse(relaxed)
    assert strided.convs[0].stride == (2, 2)
    assert certify(relaxed, merged, images()).ok


@torch.no_grad()
def test_a_fit_in_the_place_of_a_linear_branch_is_exact() -> None:
    """A branch that happens to be linear but is not understood becomes the convolution it is."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            left, right = self.conv(x).split(2, 1)
            return self.head(torch.cat([right, left], 1) + x)

    model = nets.randomise(Halves()).double()
    graph = trace(model, images())
    (fit,) = (c for c in of_branches(graph, fit=True) if c.convs[0].kernel == (3, 3))
    # No activation follows the addition, and none is inside: the fit is linear as well.
    assert fit.activation is None
    relaxed = relax(model, graph, MergePlan.of(graph, [fit]))
    repair(relaxed, model, [images(batch=16, seed=2)])
    merged, wanted = collapse(relaxed), model(images(seed=1))
    assert (merged(images(seed=1)) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
