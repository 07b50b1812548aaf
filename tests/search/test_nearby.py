"""Plans drawn around the best one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.search.test_solve import graph, importance, latency
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceTable
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.search import nearby_plans, solve
from trt_layermerge.search.nearby import SPREADS, perturbed

CANDIDATES = enumerate_candidates(graph())
IMPORTANCE, LATENCY = importance(CANDIDATES), latency(CANDIDATES)
BUDGET_MS = 0.55 * sum(
    LATENCY[spec, "fp32", 1] for c in MergePlan.of(graph(), []).candidates for spec in c.costs
)


def best(table: ImportanceTable) -> MergePlan:
    return solve(graph(), CANDIDATES, LATENCY, table, BUDGET_MS)


def test_losses_are_multiplied_by_log_normal_factors() -> None:
    found = perturbed(IMPORTANCE, 0.3, np.random.default_rng(4))
    factors = np.exp(0.3 * np.random.default_rng(4).standard_normal(len(IMPORTANCE.entries)))
    assert found.entries.keys() == IMPORTANCE.entries.keys()
    for entry, factor in zip(found.entries.values(), factors, strict=True):
        assert entry.delta == pytest.approx(-0.1 * factor)


def test_different_plans_within_the_budget_are_drawn_the_same_every_time() -> None:
    plans = nearby_plans(best, IMPORTANCE, 24, seed=1)
    assert len({plan.candidates for plan in plans}) == len(plans) > 3
    assert all(plan.latency_ms is not None and plan.latency_ms <= BUDGET_MS for plan in plans)
    assert plans == nearby_plans(best, IMPORTANCE, 24, seed=1)
    assert plans != nearby_plans(best, IMPORTANCE, 24, seed=2)


def test_without_perturbation_the_best_plan_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trt_layermerge.search.nearby.SPREADS", (0.0,))
    assert nearby_plans(best, IMPORTANCE, 5, seed=1) == [best(IMPORTANCE)]
    assert SPREADS == (0.3, 0.7)


def test_tables_without_a_plan_are_passed_over() -> None:
    assert nearby_plans(lambda table: None, IMPORTANCE, 5, seed=1) == []
    assert nearby_plans(best, IMPORTANCE, 0, seed=1) == []
