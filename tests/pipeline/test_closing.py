"""The closed loop, on a device whose networks do not take what its blocks add up to."""

from __future__ import annotations

from collections.abc import Sequence

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
from trt_layermerge.errors import InfeasibleBudgetError
from trt_layermerge.pipeline.closing import Tools, around, close_loop
from trt_layermerge.pipeline.networks import Measured, specs_of
from trt_layermerge.search import enumerate_candidates, frontier


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
        )


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
    with pytest.raises(InfeasibleBudgetError, match=r"fastest of \d+ .* takes .* % too slow"):
        close_loop(device.original_ms / 1000, 4, 2, device.tools())


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
