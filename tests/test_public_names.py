"""The Python names of ``interface.md``, used as they are written there, on the tiny network."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import trt_layermerge as tlm
from tests.measure.networks import measured
from tests.pipeline.tiny import PREPROCESS
from trt_layermerge.backends import get_backend
from trt_layermerge.core.candidate import original_candidate
from trt_layermerge.core.tables import ImportanceEntry
from trt_layermerge.errors import InfeasibleBudgetError, UsageError
from trt_layermerge.models.networks import load_network
from trt_layermerge.search import Option, chain_frontier, solve_chain


@pytest.fixture(scope="module")
def model(finished: Path) -> nn.Module:
    weights = str(finished / "tiny.safetensors")
    return load_network(f"{finished / 'nets.py'}:tiny", weights)


@pytest.fixture(scope="module")
def images(finished: Path) -> torch.Tensor:
    return torch.from_numpy(PREPROCESS(np.load(finished / "train.npz")["images"]))


@pytest.fixture(scope="module")
def latency(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tlm.LatencyTable:
    graph = tlm.trace(model, torch.zeros(1, 3, 16, 16))
    originals = [original_candidate(graph, unit.index) for unit in graph.units]
    specs = [s for c in [*tlm.enumerate_candidates(graph), *originals] for s in c.costs]
    store = tmp_path_factory.mktemp("store") / "latency.sqlite"
    return measured(specs, get_backend("fake"), "fp32", 1, store, rounds=3)


def longer_is_worse(candidates: tuple[tlm.Candidate, ...]) -> tlm.ImportanceTable:
    """Returns a table in which replacing n units loses n squared hundredths, dropping them more."""
    return tlm.ImportanceTable(
        {
            c.key: ImportanceEntry(-0.01 * len(c.block) ** 2 - (c.kind == "identity"), "test")
            for c in candidates
            if not c.original
        }
    )


def test_a_network_becomes_shallower_by_the_public_names(
    model: nn.Module, images: torch.Tensor, latency: tlm.LatencyTable
) -> None:
    state = deepcopy(model.state_dict())
    graph = tlm.trace(model, images[:2])
    cands = tlm.enumerate_candidates(graph, rules="full")
    untouched = tlm.MergePlan.of(graph, [])
    original_ms = sum(latency.cost_ms(c, "fp32", 1) for c in untouched.candidates)
    plan = tlm.solve(graph, cands, latency, longer_is_worse(cands), budget_ms=original_ms / 1.2)
    assert plan.latency_ms is not None and plan.latency_ms <= original_ms / 1.2
    assert plan.latency_ms == pytest.approx(
        sum(latency.cost_ms(c, "fp32", 1) for c in plan.candidates), rel=1e-12
    )

    relaxed = tlm.relax(model, graph, plan)
    before = distance(relaxed.eval(), model, images[96:])
    tlm.repair(relaxed, model, torch.split(images[:96], 32))
    merged = tlm.collapse(relaxed)
    cert = tlm.certify(relaxed, merged, images[:8])

    assert cert.ok and cert.max_rel_error < 1e-4
    assert distance(merged, relaxed, images[96:]) < 1e-8  # squared: 1e-4 in float32
    assert distance(relaxed, model, images[96:]) < before
    convs = sum(isinstance(m, nn.Conv2d) for m in merged.modules())
    assert convs == plan.conv_count < untouched.conv_count == 8
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])  # left untouched by all of it
    assert not model.training


@torch.no_grad()
def distance(network: nn.Module, reference: nn.Module, images: torch.Tensor) -> float:
    """Returns the mean squared difference of the outputs over the mean square of the reference."""
    answers, target = network(images), reference(images)
    return float(((answers - target) ** 2).mean() / (target**2).mean())


def test_a_certificate_can_fail(model: nn.Module, images: torch.Tensor) -> None:
    graph = tlm.trace(model, images[:2])
    relaxed = tlm.relax(model, graph, some_plan(graph)).eval()
    merged = tlm.collapse(relaxed)
    assert tlm.certify(relaxed, merged, images[:4]).ok
    with torch.no_grad():
        next(m for m in merged.modules() if isinstance(m, nn.Conv2d)).weight.mul_(1.01)
    assert not tlm.certify(relaxed, merged, images[:4]).ok


def some_plan(graph: tlm.LayerGraph) -> tlm.MergePlan:
    merged = [c for c in tlm.enumerate_candidates(graph) if c.kind == "compose" and not c.original]
    return tlm.MergePlan.of(graph, [max(merged, key=lambda c: len(c.block))])


def test_a_plan_is_exactly_what_was_asked_and_refuses_overlaps(model: nn.Module) -> None:
    graph = tlm.trace(model, torch.zeros(1, 3, 16, 16))
    first, *others = [c for c in tlm.enumerate_candidates(graph) if len(c.block) == 2]
    apart = next(c for c in others if c.block.start >= first.block.end)
    plan = tlm.MergePlan.of(graph, [apart, first])
    assert plan.changed == (first, apart)
    covered = [i for c in plan.candidates for i in range(c.block.start, c.block.end)]
    assert covered == list(range(7))
    overlapping = next(c for c in others if c.block.start < first.block.end)
    with pytest.raises(UsageError, match="overlap"):
        tlm.MergePlan.of(graph, [first, overlapping])


def test_graphs_and_candidates_tell_what_they_are(model: nn.Module) -> None:
    graph = tlm.trace(model, torch.zeros(1, 3, 16, 16))
    assert isinstance(graph, tlm.LayerGraph)
    assert len(graph.units) == 7
    assert set(graph.blocks(rules="paper")) <= set(graph.blocks(rules="full"))
    assert tlm.Block(0, 1) in graph.blocks()
    assert all(barrier.reason for barrier in graph.refusals)
    paper = tlm.enumerate_candidates(graph, rules="paper")
    assert {c.kind for c in paper} == {"compose"}
    full = tlm.enumerate_candidates(graph, rules="full")
    assert {c.kind for c in full} == {"compose", "fit", "identity"}
    for candidate in full:
        block = candidate.block
        assert 0 <= block.start < block.end <= 7
        assert all(block.start <= i < block.end for i in candidate.kept)
        assert candidate.spec is None or isinstance(candidate.spec, tlm.ConvSpec)
        assert candidate.spec is not None or candidate.kind == "identity"


def test_an_impossible_budget_is_refused(model: nn.Module, latency: tlm.LatencyTable) -> None:
    graph = tlm.trace(model, torch.zeros(1, 3, 16, 16))
    cands = tlm.enumerate_candidates(graph)
    with pytest.raises(InfeasibleBudgetError, match="below the fastest plan"):
        tlm.solve(graph, cands, latency, longer_is_worse(cands), budget_ms=1e-6)


def test_the_pure_solver_needs_no_model() -> None:
    anything = object()
    options = [Option(i, i + 1, 0.25, 0.0, f"keep {i}") for i in range(12)]
    options += [Option(i, i + 2, 0.3125, -0.1 * (i + 1)) for i in range(11)]
    options += [Option(start=0, end=2, latency_ms=0.3125, score=0.97, payload=anything)]
    # Each pair saves 0.1875 ms, so three of them bring 3.0 ms below 2.5 ms. The first is a gain,
    # and the cheapest two others that are disjoint are 2:4 and 4:6.
    solution = solve_chain(length=12, options=options, budget_ms=2.5)
    assert [(o.start, o.end) for o in solution.options if o.end - o.start == 2] == [
        (0, 2),
        (2, 4),
        (4, 6),
    ]
    assert solution.options[0].payload is anything
    assert solution.latency_ms == pytest.approx(3 * 0.3125 + 6 * 0.25, abs=1e-12)
    assert solution.score == pytest.approx(0.97 - 0.3 - 0.5, abs=1e-12)
    points = list(chain_frontier(length=12, options=options))
    assert points[-1] == pytest.approx((0.3125 + 10 * 0.25, 0.97), abs=1e-12)
    assert len(points) == 6 and points == sorted(points)
    with pytest.raises(InfeasibleBudgetError):
        solve_chain(length=12, options=options, budget_ms=1.0)


def test_every_public_name_is_there() -> None:
    assert all(getattr(tlm, name) is not None for name in tlm.__all__)
    assert {*tlm.__all__} <= {*dir(tlm)}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = tlm.nonsense
