"""The closed loop, on a device whose networks do not take what its blocks add up to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tests.search.graphs import Chain
from trt_layermerge.core.conv import ConvSpec, Spec
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import (
    ImportanceEntry,
    ImportanceTable,
    LatencyEntry,
    LatencyTable,
)
from trt_layermerge.errors import DeviceError, InfeasibleBudgetError
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.search import frontier
from trt_layermerge.search.closing import (
    BudgetMissedError,
    Tools,
    around,
    close_loop,
    predict,
)
from trt_layermerge.search.evaluator import Measured
from trt_layermerge.search.sampling import specs_of


class Device:
    """Runs every network ``bias`` times slower than the sum of its blocks."""

    def __init__(self, bias: float, learns: bool = True) -> None:
        chain = Chain(3, 16).conv(8, 3)
        for _ in range(3):
            start = len(chain.units)
            chain.conv(8, 3).conv(8, 3).residual(start)
        self.graph = chain.graph()
        self.candidates = enumerate_candidates(self.graph)
        self.bias, self.learns = bias, learns
        self.built: list[MergePlan] = []
        rng = np.random.default_rng(0)
        self.importance = ImportanceTable(
            {
                c.key: ImportanceEntry(-(len(c.block) ** 2) * float(rng.uniform(0.1, 0.2)), "test")
                for c in self.candidates
                if not c.original
            }
        )

    def block_ms(self, spec: Spec) -> float:
        return spec.macs * 1e-6 if isinstance(spec, ConvSpec) else 0.001

    def true_ms(self, plan: MergePlan) -> float:
        return self.bias * sum(self.block_ms(s) for s in specs_of(plan))

    @property
    def original_ms(self) -> float:
        return self.true_ms(MergePlan.of(self.graph, []))

    def fit(self, measured: Sequence[Measured]) -> LatencyTable:
        scale = 1.0
        measured = [m for m in measured if m.error is None]
        if measured and self.learns:
            bare = [sum(self.block_ms(s) for s in specs_of(m.plan)) for m in measured]
            scale = sum(m.ms for m in measured) / sum(bare)
        specs = {s for c in self.candidates for s in c.costs}
        return LatencyTable(
            DeviceInfo("fake", "1", "biased"),
            {(s, "fp32", 1): LatencyEntry(scale * self.block_ms(s)) for s in specs},
        )

    def measure(self, plans: Sequence[MergePlan]) -> list[Measured]:
        self.built += plans
        return [
            Measured(p, ms, self.original_ms / ms, ms) for p in plans for ms in [self.true_ms(p)]
        ]

    def tools(self) -> Tools:
        return Tools(
            self.fit,
            lambda table: frontier(self.graph, self.candidates, table, self.importance),
            self.measure,
            self.price,
        )

    def price(self, table: LatencyTable, plan: MergePlan) -> MergePlan:
        cost = sum(table.cost_ms(c, "fp32", 1) for c in plan.candidates)
        score = sum(self.importance[c].delta for c in plan.candidates)
        return replace(plan, latency_ms=cost, score=score)


def test_the_measured_network_meets_the_budget_although_the_table_is_a_third_off() -> None:
    device = Device(bias=1.33)
    limit_ms = device.original_ms / 1.5
    closed = close_loop(limit_ms, 4, 4, device.tools())
    best = closed.meeting(limit_ms)[0]
    assert best.measured.ms <= limit_ms
    true_table = device.fit(device.measure([best.plan]))
    exact = frontier(device.graph, device.candidates, true_table, device.importance)
    assert best.plan.score == exact.within(limit_ms).score


def test_a_true_table_needs_one_round() -> None:
    device = Device(bias=1.0)
    limit_ms = device.original_ms / 1.5
    closed = close_loop(limit_ms, 4, 4, device.tools())
    assert len(device.built) == 4 and closed.meeting(limit_ms)


def test_no_network_is_built_twice() -> None:
    device = Device(bias=1.33, learns=False)
    fastest = device.tools().frontier(device.fit([])).latency_ms[0]
    with pytest.raises(InfeasibleBudgetError):
        close_loop(1.3 * float(fastest), 3, 5, device.tools())
    assert len({p.candidates for p in device.built}) == len(device.built)


def test_a_table_that_stays_wrong_does_not_make_a_budget_impossible() -> None:
    device = Device(bias=1.33, learns=False)
    fastest = float(device.tools().frontier(device.fit([])).latency_ms[0])
    limit_ms = 1.4 * fastest
    assert device.original_ms > limit_ms
    closed = close_loop(limit_ms, 2, 2, device.tools())
    assert 0.85 * limit_ms < closed.meeting(limit_ms)[0].measured.ms <= limit_ms


def test_an_impossible_budget_says_by_how_much_it_is_missed() -> None:
    device = Device(bias=1.0)
    with pytest.raises(BudgetMissedError, match=r"fastest of \d+ .* takes .* % too slow") as missed:
        close_loop(device.original_ms / 1000, 4, 2, device.tools())
    assert len(missed.value.closed.frontier) > 1


def test_headroom_alone_makes_no_budget_impossible() -> None:
    device = Device(bias=1.0)
    fastest = float(device.tools().frontier(device.fit([])).latency_ms[0])
    aim_ms, budget_ms = 0.99 * fastest, 1.01 * fastest
    closed = close_loop(aim_ms, 4, 2, device.tools(), budget_ms)
    assert not closed.meeting(aim_ms)
    assert closed.meeting(budget_ms)[0].measured.ms == pytest.approx(fastest, rel=1e-9)
    with pytest.raises(InfeasibleBudgetError, match="no network meets"):
        close_loop(aim_ms, 4, 2, device.tools())


@pytest.mark.parametrize("width", [1, 2, 3, 6])
def test_finalists_surround_the_limit_and_most_are_within(width: int) -> None:
    device = Device(bias=1.0)
    table = device.fit([])
    found = frontier(device.graph, device.candidates, table, device.importance)
    limit_ms = float(np.median(found.latency_ms))
    plans = around(found, 0.0, limit_ms, width)
    latencies = [p.latency_ms or 0.0 for p in plans]
    assert len(plans) == width
    within = [ms for ms in latencies if ms <= limit_ms]
    assert max(within) == found.within(limit_ms).latency_ms
    assert len(within) >= len(plans) - max(1, width // 3)


def test_what_is_predicted_far_beyond_the_limit_is_not_built() -> None:
    """The table may be wrong by some percent, so a little beyond the limit is looked at too."""
    device = Device(bias=1.0)
    found = device.tools().frontier(device.fit([]))
    latencies = [float(ms) for ms in found.latency_ms]
    gaps = [b / a for a, b in pairwise(latencies)]
    place = max(i for i, gap in enumerate(gaps) if i > 4 and 1.2 < gap < 1.7)
    limit_ms = 1.001 * latencies[place]  # the next plan is 20 to 70 % slower
    close_loop(limit_ms, 4, 1, device.tools())
    assert len(device.built) == 4
    assert max(map(device.true_ms, device.built)) <= limit_ms
    close_loop(0.999 * latencies[place], 4, 1, device.tools())
    assert max(map(device.true_ms, device.built)) == pytest.approx(latencies[place])


def broken(plan: MergePlan) -> Measured:
    return Measured(plan, math.inf, 0.0, math.inf, error="out of memory")


def test_a_network_that_does_not_run_costs_only_itself() -> None:
    device = Device(bias=1.0)
    limit_ms = device.original_ms / 1.5
    best = close_loop(limit_ms, 4, 4, device.tools()).meeting(limit_ms)[0].plan

    def measure(plans: Sequence[MergePlan]) -> list[Measured]:
        good = device.measure(plans)
        return [broken(m.plan) if m.plan.candidates == best.candidates else m for m in good]

    closed = close_loop(limit_ms, 4, 4, replace(device.tools(), measure=measure))
    chosen = closed.meeting(limit_ms)[0]
    assert chosen.plan.candidates != best.candidates and chosen.ms <= limit_ms
    assert [f.measured and f.measured.error for f in closed.finalists].count("out of memory") == 1


def test_where_nothing_runs_the_device_is_to_blame() -> None:
    device = Device(bias=1.0)
    tools = replace(device.tools(), measure=lambda plans: [broken(p) for p in plans])
    with pytest.raises(DeviceError, match=r"none of the .* out of memory"):
        close_loop(device.original_ms / 1.5, 2, 1, tools)


def test_a_prediction_names_what_to_measure_next_and_then_knows_it() -> None:
    device = Device(bias=1.2)
    limit_ms = device.original_ms / 1.5

    def never(plans: Sequence[MergePlan]) -> list[Measured]:
        raise AssertionError("nothing may be measured")

    tools = replace(device.tools(), measure=never)
    first = predict([limit_ms], 4, tools, [])
    assert len(first.finalists) == 4
    assert all(f.measured is None for f in first.finalists) and not first.meeting(1e9)
    known = device.measure([f.plan for f in first.finalists])
    second = predict([limit_ms], 4, tools, known)
    assert [f.measured for f in second.finalists[:4]] == known
    assert all(f.predicted_ms == pytest.approx(f.ms) for f in second.finalists[:4])
    assert {f.plan.candidates for f in second.finalists[4:]}.isdisjoint(
        m.plan.candidates for m in known
    )
    assert [f.plan.score for f in second.finalists[:4]] == [f.plan.score for f in first.finalists]


def test_where_the_known_plans_are_too_slow_faster_ones_are_predicted() -> None:
    device = Device(bias=1.4, learns=False)
    limit_ms = device.original_ms / 1.5
    known: list[Measured] = []
    for _ in range(20):
        closed = predict([limit_ms], 2, device.tools(), known)
        if closed.meeting(limit_ms):
            break
        new = [f.plan for f in closed.finalists if f.measured is None]
        assert any(f.predicted_ms <= limit_ms for f in closed.finalists if f.measured is None)
        known += device.measure(new)
    assert closed.meeting(limit_ms)
    assert len({m.plan.candidates for m in known}) == len(known)


def test_several_aims_bring_plans_from_the_limit_down_each_once() -> None:
    device = Device(bias=1.0)
    limit_ms = device.original_ms / 1.2
    closed = predict([limit_ms, limit_ms / 1.01, limit_ms / 1.5], 3, device.tools(), [])
    plans = [f.plan.candidates for f in closed.finalists]
    assert len(set(plans)) == len(plans) > 3
    latencies = [f.predicted_ms for f in closed.finalists]
    assert min(latencies) < limit_ms / 1.5 < limit_ms / 1.1 < max(latencies)
