"""Plans drawn around the best ones are scored whole, and measured where they may be the best."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from trt_layermerge.core.jsonio import Json, read_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.kinds import families
from trt_layermerge.pipeline import repaired
from trt_layermerge.pipeline.api import open_run, run_stage
from trt_layermerge.pipeline.choosing import tools_of
from trt_layermerge.pipeline.closing import Closed, close_loop
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.joint import (
    RACERS,
    JointScores,
    contenders,
    draw,
    offers_of,
    shares,
    widen,
)
from trt_layermerge.pipeline.objective import frontier_of
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.pipeline.stages.search import _networks
from trt_layermerge.search import plan_of

UNRACED = {"search.race_steps": 0}


@pytest.fixture
def context(runs: Path) -> Context:
    """The finished run, whose plans race."""
    return open_run(None, RunOptions("tiny", runs), NullReporter())


@pytest.fixture
def unraced(runs: Path) -> Context:
    """The finished run, as if its plans were not to race."""
    return open_run(None, RunOptions("tiny", runs, overrides=UNRACED), NullReporter())


def looped(context: Context, limit_ms: float) -> Closed:
    return close_loop(limit_ms, 2, 2, tools_of(context, *_networks(context)))


def limit(context: Context) -> float:
    original_ms, _ = _networks(context)
    return original_ms / 1.3


def widened(context: Context) -> tuple[Closed, int, JointScores]:
    """Returns what the loop and ``widen`` found, how much of it the loop, and the whole scores."""
    closed, scores = looped(context, limit(context)), JointScores(context)
    before = len(closed.finalists)
    widen(context, tools_of(context, *_networks(context)), closed, limit(context), scores)
    return closed, before, scores


def sum_of(context: Context, plan: MergePlan) -> float:
    return sum(context.importance[c].delta for c in plan.changed)


def score_by(monkeypatch: pytest.MonkeyPatch, asked: list[MergePlan], better: bool) -> None:
    """Scores plans by what they lose in the sums, the most first, or all alike."""

    def joint_delta(context: Context, plan: MergePlan) -> float:
        asked.append(plan)
        return -sum_of(context, plan) if better else -1.0

    monkeypatch.setattr(repaired, "joint_delta", joint_delta)


def kinds(plan: MergePlan) -> set[str]:
    return {candidate.kind for candidate in plan.changed}


def test_drawn_plans_are_predicted_within_the_limit_and_of_three_families(
    context: Context,
) -> None:
    plans = draw(context, context.latency, limit(context))
    assert len({plan.candidates for plan in plans}) == len(plans) > 2
    assert all((plan.latency_ms or 0.0) <= limit(context) for plan in plans)
    assert any("fit" in kinds(plan) for plan in plans)
    assert any("compose" in kinds(plan) and "fit" not in kinds(plan) for plan in plans)
    assert any(kinds(plan) == {"identity"} for plan in plans)


@pytest.mark.parametrize(("mode", "families"), [("layermerge", 3), ("layer", 1), ("depth", 1)])
def test_a_family_that_offers_nothing_new_is_left_out(runs: Path, mode: str, families: int) -> None:
    overrides = {"search.mode": mode}
    offers = offers_of(
        open_run(None, RunOptions("tiny", runs, overrides=overrides), NullReporter())
    )
    assert len(offers) == len(set(offers)) == families
    assert all(offers) and not any(c.original for offer in offers for c in offer)


@pytest.mark.parametrize("kinds_of", families())
def test_the_best_plan_of_each_family_is_among_the_drawn(
    context: Context, kinds_of: tuple[str, ...]
) -> None:
    offered = [c for c in context.candidates if c.kind in kinds_of]
    found = frontier_of(context, context.latency, candidates=offered)
    overhead_ms = context.latency.overhead_ms
    best = plan_of(found.within(limit(context) - overhead_ms), overhead_ms)
    drawn = draw(context, context.latency, limit(context))
    assert best.candidates in {plan.candidates for plan in drawn}


@pytest.mark.parametrize(
    ("count", "expected"), [(0, [0, 0, 0]), (1, [1, 0, 0]), (16, [6, 5, 5]), (18, [6, 6, 6])]
)
def test_every_family_is_drawn_about_as_often(count: int, expected: list[int]) -> None:
    assert shares(count, 3) == expected


def singles(context: Context) -> dict[str, list[MergePlan]]:
    """Returns five plans of a single change for every kind."""
    return {
        kind: [
            MergePlan.of(context.graph, [c])
            for c in islice((c for c in context.candidates if c.kind == kind and not c.original), 5)
        ]
        for kind in ("identity", "compose", "fit")
    }


def scored(context: Context, first: str, second: str, third: str) -> tuple[list[MergePlan], Json]:
    """Returns plans from the best to the worst, kind after kind, and all with their scores."""
    found = singles(context)
    order = [plan for kind in (first, second, third) for plan in found[kind]]
    return order, {plan.candidates: -float(place) for place, plan in enumerate(order)}


def test_the_best_of_every_family_race(context: Context) -> None:
    order, known = scored(context, "fit", "compose", "identity")
    assert len(order) == 15
    fits, composed, gone = order[:5], order[5:10], order[10:]
    racers = contenders(context, order[::-1], JointScores(context, known))
    assert racers == [*fits[:RACERS], *composed[:RACERS], *gone[:RACERS]]
    # A plan that leads several families runs once.
    order, known = scored(context, "identity", "compose", "fit")
    racers = contenders(context, order[::-1], JointScores(context, known))
    assert racers == order[:RACERS]
    order, known = scored(context, "compose", "fit", "identity")
    racers = contenders(context, order[::-1], JointScores(context, known))
    assert racers == [*order[:RACERS], *order[10 : 10 + RACERS]]


def test_a_plan_of_several_kinds_belongs_to_the_family_that_has_them_all(
    context: Context,
) -> None:
    assert [set(family) for family in families()] == [
        {"compose", "fit", "identity"},
        {"compose", "identity"},
        {"identity"},
    ]
    assert {c.kind for c in context.candidates} == set(families()[0])
    fit, gone = (
        next(c for c in context.candidates if c.kind == kind and c.block.start == start)
        for kind, start in (("fit", 1), ("identity", 5))
    )
    mixed = MergePlan.of(context.graph, [fit, gone])
    order, known = scored(context, "identity", "compose", "fit")
    known[mixed.candidates] = -0.5
    racers = contenders(context, [*order, mixed], JointScores(context, known))
    # Second of all plans, but third and fourth of those without fits are still asked.
    assert racers == [order[0], mixed, order[1], order[2]]


def test_without_a_race_the_best_wholes_are_contenders(unraced: Context) -> None:
    order, known = scored(unraced, "fit", "compose", "identity")
    best = contenders(unraced, order[::-1], JointScores(unraced, known))
    assert best == order[: unraced.recipe.search.finalists]


def test_better_wholes_are_measured_and_join_the_finalists(
    unraced: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[MergePlan] = []
    score_by(monkeypatch, asked, better=True)
    closed, before, scores = widened(unraced)
    added = closed.finalists[before:]
    assert 0 < len(added) <= unraced.recipe.search.finalists
    looped = [f.plan for f in closed.finalists[:before] if f.ms <= limit(unraced)]
    assert looped
    for finalist in added:
        whole = scores.known[finalist.plan.candidates]
        assert all(whole > scores.known[plan.candidates] for plan in looped)
        assert finalist.measured is not None
        # Its score is that of the true table, not of the perturbed one that it was drawn by.
        assert finalist.plan.score == pytest.approx(sum_of(unraced, finalist.plan))
    best = sorted(scores.known.values())[-len(added) :]
    assert sorted(scores.known[f.plan.candidates] for f in added) == best
    assert len({plan.candidates for plan in asked}) == len(asked) == len(scores.known)


def test_what_is_not_better_is_not_built(unraced: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[MergePlan] = []
    score_by(monkeypatch, asked, better=False)
    closed, before, _ = widened(unraced)
    assert len(asked) > before == len(closed.finalists)


def test_where_plans_race_the_best_of_every_family_are_measured(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[MergePlan] = []
    score_by(monkeypatch, asked, better=False)
    closed, before, _ = widened(context)
    added = closed.finalists[before:]
    assert all(f.measured is not None for f in added)
    assert any(kinds(f.plan) == {"identity"} for f in added)
    assert len(added) <= RACERS * len(families())
    for family in families():
        within = [f for f in closed.finalists if kinds(f.plan) <= set(family)]
        offered = [plan for plan in asked if kinds(plan) <= set(family)]
        assert len(within) >= min(RACERS, len(offered))


def chosen(context: Context) -> tuple[Json, list[Json]]:
    rows = read_json(context.folder / "finalists.json", "finalists")["finalists"]
    (chosen,) = [row for row in rows if row["chosen"]]
    return chosen, rows


def test_the_plan_that_learns_most_is_chosen(context: Context) -> None:
    taken, rows = chosen(context)
    raced = [row["race_scores"] for row in rows if row["race_scores"] is not None]
    furthest = max(map(len, raced))
    means = [sum(scores) / furthest for scores in raced if len(scores) == furthest]
    assert 1 < len(means) < len(raced) and len(set(means)) > 1
    assert len(taken["race_scores"]) == furthest
    assert sum(taken["race_scores"]) / furthest == max(means)
    assert all(row["joint_score"] is not None for row in rows if row["race_scores"] is not None)


def test_without_a_race_the_best_whole_of_those_that_meet_the_budget_is_chosen(
    runs: Path, unraced: Context
) -> None:
    run_stage("search", RunOptions("tiny", runs, overrides=UNRACED))
    taken, rows = chosen(unraced)
    whole = [row["joint_score"] for row in rows if row["joint_score"] is not None]
    assert len(whole) > 1
    assert taken["joint_score"] == max(whole)
    assert all(row["race_scores"] is None for row in rows)
