"""The dynamic programme against brute force."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from trt_layermerge.errors import InfeasibleBudgetError, UsageError
from trt_layermerge.search import Option, chain_frontier, solve_chain


def random_instance(seed: int, least: int = 1) -> tuple[int, list[Option]]:
    """Returns a chain; with ``least`` 0, positions may be missing that no option covers."""
    rng = np.random.default_rng(seed)
    length = int(rng.integers(1, 7))
    options = []
    for start in range(length):
        for end in range(start + 1, length + 1):
            for _ in range(int(rng.integers(0 if end > start + 1 else least, 3))):
                coarse = rng.integers(0, 2)  # half of the instances are full of ties
                latency = float(rng.integers(0, 5)) if coarse else float(rng.uniform(0, 5))
                score = float(rng.integers(-3, 3)) if coarse else float(rng.normal())
                options.append(Option(start, end, latency, score))
    return length, options


def covers(length: int, options: list[Option], start: int = 0) -> Iterator[tuple[Option, ...]]:
    if start == length:
        yield ()
    for option in options:
        if option.start == start:
            for rest in covers(length, options, option.end):
                yield (option, *rest)


def total(cover: tuple[Option, ...]) -> tuple[float, float]:
    latency = score = 0.0
    for option in cover:
        latency, score = latency + option.latency_ms, score + option.score
    return latency, score


def nondominated(points: set[tuple[float, float]]) -> list[tuple[float, float]]:
    return sorted(
        p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)
    )


@pytest.mark.parametrize("block", range(10))
def test_equals_brute_force_on_a_thousand_instances(block: int) -> None:
    for seed in range(100 * block, 100 * block + 100):
        length, options = random_instance(seed)
        points = {total(cover) for cover in covers(length, options)}
        found = chain_frontier(length, options)
        assert list(found) == nondominated(points)
        budget = float(np.random.default_rng(seed).uniform(0, 12))
        affordable = [p for p in points if p[0] <= budget]
        if not affordable:
            with pytest.raises(InfeasibleBudgetError):
                solve_chain(length, options, budget)
            continue
        solution = solve_chain(length, options, budget)
        assert solution.latency_ms <= budget
        assert solution.score == max(p[1] for p in affordable)
        assert total(solution.options) == (solution.latency_ms, solution.score)
        assert [o.start for o in solution.options[1:]] == [o.end for o in solution.options[:-1]]


def test_the_worst_score_counts_where_it_shall() -> None:
    """Against all covers, and against bisection over the largest loss that is allowed (ALDS)."""
    for seed in range(300):
        length, options = random_instance(seed)
        options = [replace(o, score=-abs(o.score)) for o in options]
        points = {
            (total(cover)[0], min(o.score for o in cover)) for cover in covers(length, options)
        }
        found = chain_frontier(length, options, worst=True)
        assert list(found) == nondominated(points)
        for index, (latency, score) in enumerate(found):
            within = [o for o in options if o.score >= score]
            assert chain_frontier(length, within).latency_ms[0] == latency
            assert min(o.score for o in found.solution(index).options) == score


def test_equals_brute_force_where_positions_cannot_be_reached() -> None:
    gaps = 0
    for seed in range(600):
        length, options = random_instance(seed, least=0)
        kept = np.random.default_rng(seed).random(len(options)) < 0.5
        options = [o for o, wanted in zip(options, kept, strict=True) if wanted]
        points = {total(cover) for cover in covers(length, options)}
        gaps += len({o.end for o in options}) < length
        if points:
            assert list(chain_frontier(length, options)) == nondominated(points)
        else:
            with pytest.raises(UsageError, match="no options cover"):
                chain_frontier(length, options)
    assert gaps > 60


def test_one_option_over_the_whole_chain() -> None:
    assert solve_chain(7, [Option(0, 7, 1.0, 2.0)], 1.0).score == 2.0
    options = [Option(0, 7, 1.0, 2.0), Option(3, 5, 0.1, 9.0), Option(5, 7, 0.1, 9.0)]
    assert solve_chain(7, options, 1.0).options == (options[0],)


def test_every_frontier_point_has_the_options_it_claims() -> None:
    length, options = random_instance(3)
    found = chain_frontier(length, options)
    for index, point in enumerate(found):
        solution = found.solution(index)
        assert total(solution.options) == point == (solution.latency_ms, solution.score)


def test_budget_is_met_exactly_when_it_equals_a_latency() -> None:
    options = [Option(0, 1, 1.0, 0.0), Option(0, 1, 2.0, 1.0)]
    assert solve_chain(1, options, 2.0).score == 1.0
    assert solve_chain(1, options, math.nextafter(2.0, 0)).score == 0.0


def test_infinite_latency_is_never_chosen() -> None:
    options = [Option(0, 1, math.inf, 9.0), Option(0, 1, 1.0, 0.0, payload="kept")]
    assert solve_chain(1, options, 1e9).options[0].payload == "kept"


@pytest.mark.parametrize(
    ("length", "options", "message"),
    [
        (2, [Option(0, 1, 1.0, 0.0)], "no options cover"),
        (1, [Option(0, 2, 1.0, 0.0)], "not in a chain of 1"),
        (1, [Option(0, 1, math.nan, 0.0)], "NaN"),
        (1, [Option(0, 1, 1.0, math.nan)], "NaN"),
    ],
)
def test_refuses_what_is_no_instance(length: int, options: list[Option], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chain_frontier(length, options)


def test_infeasible_budget_says_what_the_fastest_plan_takes() -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"budget 1.2 ms .* fastest plan, 1.34 ms"):
        solve_chain(1, [Option(0, 1, 1.34, 0.0)], 1.2)
