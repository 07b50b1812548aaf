"""Tables in, plan out."""

from __future__ import annotations

import math

import pytest

from tests.search.graphs import Chain
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.conv import ConvSpec, Spec
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import (
    ImportanceEntry,
    ImportanceTable,
    LatencyEntry,
    LatencyTable,
)
from trt_layermerge.errors import InfeasibleBudgetError, UsageError
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.search import Mode, Objective, frontier, solve


def graph() -> LayerGraph:
    chain = Chain(3, 16).conv(8, 3)
    for _ in range(2):
        start = len(chain.units)
        chain.conv(8, 3).conv(8, 3).residual(start)
    return chain.graph()


def cost(spec: Spec) -> float:
    return spec.macs * 1e-6 if isinstance(spec, ConvSpec) else 0.001


def latency(candidates: tuple[Candidate, ...], overhead_ms: float = 0.0) -> LatencyTable:
    specs = {spec for c in candidates for spec in c.costs}
    entries = {(s, "fp32", 1): LatencyEntry(cost(s)) for s in specs}
    return LatencyTable(DeviceInfo("fake", "1", "none"), entries, overhead_ms)  # type: ignore[arg-type]


def importance(candidates: tuple[Candidate, ...], delta: float = -0.1) -> ImportanceTable:
    entries = {c.key: ImportanceEntry(delta, "test") for c in candidates if not c.original}
    return ImportanceTable(entries)


def test_a_loose_budget_changes_nothing() -> None:
    candidates = enumerate_candidates(graph())
    plan = solve(graph(), candidates, latency(candidates), importance(candidates), 1e9)
    assert plan.changed == () and plan.score == 0.0
    assert plan.latency_ms == pytest.approx(sum(cost(s) for c in plan.candidates for s in c.costs))


def test_overhead_counts_towards_the_budget() -> None:
    candidates = enumerate_candidates(graph())
    bare = solve(graph(), candidates, latency(candidates), importance(candidates), 0.5)
    table = latency(candidates, overhead_ms=0.25)
    loaded = solve(graph(), candidates, table, importance(candidates), 0.75)
    assert loaded.candidates == bare.candidates
    assert loaded.latency_ms is not None and loaded.latency_ms <= 0.75
    with pytest.raises(InfeasibleBudgetError, match=r"0\.25 ms .*fastest plan"):
        solve(graph(), candidates, table, importance(candidates), 0.25)


@pytest.mark.parametrize(
    ("mode", "kinds"), [("depth", {"compose"}), ("layer", {"compose", "identity"})]
)
def test_modes_restrict_what_is_chosen(mode: Mode, kinds: set[str]) -> None:
    candidates = enumerate_candidates(graph())
    found = frontier(graph(), candidates, latency(candidates), importance(candidates), mode=mode)
    assert len(found) > 1 or mode == "depth"
    for index in range(len(found)):
        for option in found.solution(index).options:
            candidate = option.payload
            assert candidate.kind in kinds
            if mode == "depth":
                assert len(candidate.kept) == len(candidate.block)
            else:
                assert candidate.original or candidate.kind == "identity"


def test_the_published_objective_rewards_every_block_that_stays() -> None:
    candidates = enumerate_candidates(graph())
    table, losses = latency(candidates), importance(candidates, delta=0.0)
    by_loss = frontier(graph(), candidates, table, losses)
    assert len(by_loss) == 1  # nothing is lost, so only the fastest plan is left
    published = frontier(graph(), candidates, table, losses, objective=Objective("exp"))
    assert published.score[-1] == len(graph().units)


def test_capacity_is_paid_per_convolution_that_keeps_an_activation() -> None:
    candidates = enumerate_candidates(graph())
    table, losses = latency(candidates), importance(candidates, delta=0.0)
    found = frontier(graph(), candidates, table, losses, objective=Objective(capacity=0.1))
    assert found.score[-1] == pytest.approx(0.1 * len(graph().units))
    for index, (_, score) in enumerate(found):
        nonlinear = sum(o.payload.nonlinear for o in found.solution(index).options)
        assert score == pytest.approx(0.1 * nonlinear)


def test_a_candidate_that_failed_to_build_is_never_chosen() -> None:
    candidates = enumerate_candidates(graph())
    table = latency(candidates)
    broken = {
        key: LatencyEntry(math.inf, error="no kernel")
        for key in table.entries
        if isinstance(key[0], ConvSpec) and key[0].kernel == (5, 5)
    }
    assert broken
    table = LatencyTable(table.device, {**table.entries, **broken})
    found = frontier(graph(), candidates, table, importance(candidates))
    for index in range(len(found)):
        used = {s for o in found.solution(index).options for s in o.payload.costs}
        assert not any(isinstance(s, ConvSpec) and s.kernel == (5, 5) for s in used)


def test_an_unmeasured_spec_is_named() -> None:
    candidates = enumerate_candidates(graph())
    empty = LatencyTable(DeviceInfo("fake", "1", "none"), {})
    with pytest.raises(UsageError, match="no latency of 3>8 k3x3"):
        solve(graph(), candidates, empty, importance(candidates), 1.0)


def test_plan_of_candidates_fills_the_gaps_and_refuses_overlaps() -> None:
    candidates = enumerate_candidates(graph())
    one = next(c for c in candidates if c.kind == "fit" and len(c.block) == 2)
    plan = MergePlan.of(graph(), [one])
    assert plan.changed == (one,)
    assert [c.block.start for c in plan.candidates[1:]] == [
        c.block.end for c in plan.candidates[:-1]
    ]
    with pytest.raises(UsageError, match="overlap"):
        MergePlan.of(graph(), [one, one])
