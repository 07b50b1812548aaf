"""Scoring only what the frontier may need leads to the frontier of the whole table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.search.test_solve import graph, latency
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.tables import ImportanceEntry, ImportanceTable, LatencyTable
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.search.chain import Frontier
from trt_layermerge.search.joint import offers_of
from trt_layermerge.search.lazy import FASTEST, refine
from trt_layermerge.search.problem import Problem
from trt_layermerge.search.solve import Objective

GRAPH = graph()
CANDIDATES = enumerate_candidates(GRAPH)
BOUND = 0.5


def instance(seed: int) -> tuple[Problem, LatencyTable, ImportanceTable]:
    """Returns a problem of first looks, as wrong as the bound allows, latencies, and the truth."""
    rng = np.random.default_rng(seed)
    plain = latency(CANDIDATES)
    costs = {key: float(rng.uniform(0.01, 1)) for key in sorted(plain.entries, key=str)}
    truth, looks = {}, {}
    for candidate in CANDIDATES:
        if not candidate.original:
            loss = float(rng.lognormal(0, 1.5))
            # What is good looks as bad as the bound allows, and what is bad looks good.
            look = loss / BOUND if loss < 1 else loss * float(rng.uniform(0.05, 1))
            truth[candidate.key] = ImportanceEntry(-loss, "calibrate")
            looks[candidate.key] = ImportanceEntry(-look, "calibrate", images=16)
    problem = Problem(
        GRAPH, CANDIDATES, ImportanceTable(looks), "fp32", 1, "layermerge", Objective()
    )
    return problem, plain.with_costs(costs, 0.1, {}), ImportanceTable(truth)


class Scoring:
    """Scores what it is asked to, and remembers how much that was."""

    def __init__(self, looks: ImportanceTable, truth: ImportanceTable) -> None:
        self.entries, self.truth = dict(looks.entries), truth
        self.scored: list[Candidate] = []

    def __call__(self, candidates: Sequence[Candidate]) -> ImportanceTable:
        self.scored += candidates
        self.entries |= {c.key: self.truth[c] for c in candidates}
        return ImportanceTable(dict(self.entries))


def within(frontier: Frontier, slowest_ms: float) -> list[tuple[float, float]]:
    return [point for point in frontier if point[0] + 0.1 >= slowest_ms / FASTEST]


@pytest.mark.parametrize("seeds", [range(n, n + 50) for n in range(0, 200, 50)])
def test_the_frontier_is_that_of_the_whole_table(seeds: range) -> None:
    """200 adversarial instances, all families of kinds: same points, and something is saved."""
    saved = 0
    for seed in seeds:
        problem, table, truth = instance(seed)
        scoring = Scoring(problem.importance, truth)
        found = refine(problem, table, scoring, BOUND)
        whole_ms = float(problem.frontier(table, candidates=()).latency_ms[0]) + 0.1
        for offered in offers_of(problem):
            exact = problem.frontier(table, truth, offered)
            lazy = problem.frontier(table, found, offered)
            assert within(lazy, whole_ms) == within(exact, whole_ms)
        assert len({c.key for c in scoring.scored}) == len(scoring.scored)  # each once
        saved += len(scoring.scored) < len(truth.entries)
    assert saved == len(seeds)


def test_without_a_bound_that_holds_the_frontier_may_differ() -> None:
    """The check above can fail: with first looks taken at their word it does."""
    different = 0
    for seed in range(20):
        problem, table, truth = instance(seed)
        found = refine(problem, table, Scoring(problem.importance, truth), bound=1.0)
        different += [*problem.frontier(table, found)] != [*problem.frontier(table, truth)]
    assert different > 0


def test_what_is_exact_already_is_not_scored_again() -> None:
    problem, table, truth = instance(0)
    scoring = Scoring(problem.importance, truth)
    known = refine(replace(problem, importance=truth), table, scoring)
    assert known == truth and not scoring.scored
