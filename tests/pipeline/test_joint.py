"""Plans drawn around the best ones are scored whole, and measured where they may be the best."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.jsonio import Json, read_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.kinds import families
from trt_layermerge.pipeline.api import open_run, run_stage
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.pipeline.run import Run
from trt_layermerge.search import joint, plan_of
from trt_layermerge.search.closing import Closed, Tools, close_loop
from trt_layermerge.search.joint import (
    RACERS,
    JointScores,
    Neighbours,
    offers_of,
    shares,
    widen,
)
from trt_layermerge.session.searching import WholeNetworks, loop_tools

UNRACED = {"search.race_steps": 0}


@pytest.fixture
def run(runs: Path) -> Run:
    """The finished run, whose plans race."""
    return open_run(None, RunOptions("tiny", runs), NullReporter())


@pytest.fixture
def unraced(runs: Path) -> Run:
    """The finished run, as if its plans were not to race."""
    return open_run(None, RunOptions("tiny", runs, overrides=UNRACED), NullReporter())


def whole(run: Run) -> WholeNetworks:
    return run.session.whole_networks(run.train, run.data("val"), None, Path())


def tools(run: Run) -> Tools:
    session = run.session
    return loop_tools(session.problem, session.latencies, run.recipe, whole(run))


def scores_of(run: Run, known: Json | None = None) -> JointScores:
    return JointScores(run.session.problem, whole(run), Callbacks(), known or {})


def neighbours(run: Run) -> Neighbours:
    search = run.recipe.search
    return Neighbours(search.finalists, search.samples, run.seed)


def draw(run: Run, table: LatencyTable, limit_ms: float) -> list[MergePlan]:
    return joint.draw(run.session.problem, table, limit_ms, neighbours(run))


def contenders(run: Run, plans: list[MergePlan], known: Json) -> list[MergePlan]:
    return joint.contenders(plans, scores_of(run, known), run.recipe.search.finalists)


def looped(run: Run, limit_ms: float) -> Closed:
    return close_loop(limit_ms, 2, 2, tools(run))


def limit(run: Run) -> float:
    return run.session.latencies.original_ms / 1.3


def widened(run: Run) -> tuple[Closed, int, JointScores]:
    """Returns what the loop and ``widen`` found, how much of it the loop, and the whole scores."""
    closed, scores = looped(run, limit(run)), scores_of(run)
    before = len(closed.finalists)
    widen(tools(run), closed, limit(run), scores, neighbours(run))
    return closed, before, scores


def sum_of(run: Run, plan: MergePlan) -> float:
    return sum(run.session.importance[c].delta for c in plan.changed)


def score_by(monkeypatch: pytest.MonkeyPatch, asked: list[MergePlan], better: bool) -> None:
    """Scores plans by what they lose in the sums, the most first, or all alike."""

    def joint_delta(self: WholeNetworks, plan: MergePlan) -> float:
        asked.append(plan)
        table = self.starts.importance
        return -sum(table[c].delta for c in plan.changed) if better else -1.0

    monkeypatch.setattr(WholeNetworks, "joint_delta", joint_delta)


def kinds(plan: MergePlan) -> set[str]:
    return {candidate.kind for candidate in plan.changed}


def test_drawn_plans_are_predicted_within_the_limit_and_of_three_families(
    run: Run,
) -> None:
    plans = draw(run, run.latency, limit(run))
    assert len({plan.candidates for plan in plans}) == len(plans) > 2
    assert all((plan.latency_ms or 0.0) <= limit(run) for plan in plans)
    assert any("fit" in kinds(plan) for plan in plans)
    assert any("compose" in kinds(plan) and "fit" not in kinds(plan) for plan in plans)
    assert any(kinds(plan) == {"identity"} for plan in plans)


@pytest.mark.parametrize(("mode", "families"), [("layermerge", 3), ("layer", 1), ("depth", 1)])
def test_a_family_that_offers_nothing_new_is_left_out(runs: Path, mode: str, families: int) -> None:
    overrides = {"search.mode": mode}
    run = open_run(None, RunOptions("tiny", runs, overrides=overrides), NullReporter())
    offers = offers_of(run.session.problem)
    assert len(offers) == len(set(offers)) == families
    assert all(offers) and not any(c.original for offer in offers for c in offer)


@pytest.mark.parametrize("kinds_of", families())
def test_the_best_plan_of_each_family_is_among_the_drawn(
    run: Run, kinds_of: tuple[str, ...]
) -> None:
    offered = [c for c in run.session.candidates if c.kind in kinds_of]
    found = run.session.problem.frontier(run.latency, candidates=offered)
    overhead_ms = run.latency.overhead_ms
    best = plan_of(found.within(limit(run) - overhead_ms), overhead_ms)
    drawn = draw(run, run.latency, limit(run))
    assert best.candidates in {plan.candidates for plan in drawn}


@pytest.mark.parametrize(
    ("count", "expected"), [(0, [0, 0, 0]), (1, [1, 0, 0]), (16, [6, 5, 5]), (18, [6, 6, 6])]
)
def test_every_family_is_drawn_about_as_often(count: int, expected: list[int]) -> None:
    assert shares(count, 3) == expected


def singles(run: Run) -> dict[str, list[MergePlan]]:
    """Returns five plans of a single change for every kind."""
    return {
        kind: [
            MergePlan.of(run.graph, [c])
            for c in islice(
                (c for c in run.session.candidates if c.kind == kind and not c.original), 5
            )
        ]
        for kind in ("identity", "compose", "fit")
    }


def scored(run: Run, first: str, second: str, third: str) -> tuple[list[MergePlan], Json]:
    """Returns plans from the best to the worst, kind after kind, and all with their scores."""
    found = singles(run)
    order = [plan for kind in (first, second, third) for plan in found[kind]]
    return order, {plan.candidates: -float(place) for place, plan in enumerate(order)}


def test_the_best_of_every_family_race(run: Run) -> None:
    order, known = scored(run, "fit", "compose", "identity")
    assert len(order) == 15
    fits, composed, gone = order[:5], order[5:10], order[10:]
    racers = contenders(run, order[::-1], known)
    assert racers == [*fits[:RACERS], *composed[:RACERS], *gone[:RACERS]]
    # A plan that leads several families runs once.
    order, known = scored(run, "identity", "compose", "fit")
    racers = contenders(run, order[::-1], known)
    assert racers == order[:RACERS]
    order, known = scored(run, "compose", "fit", "identity")
    racers = contenders(run, order[::-1], known)
    assert racers == [*order[:RACERS], *order[10 : 10 + RACERS]]


def test_a_plan_of_several_kinds_belongs_to_the_family_that_has_them_all(
    run: Run,
) -> None:
    offered = {c.kind for c in run.session.candidates}
    assert [offered & set(family) for family in families()] == [
        {"compose", "fit", "identity"},
        {"compose", "identity"},  # with ``narrow``, which is not offered
        {"compose", "identity"},
        {"identity"},
    ]
    fit, gone = (
        next(c for c in run.session.candidates if c.kind == kind and c.block.start == start)
        for kind, start in (("fit", 1), ("identity", 5))
    )
    mixed = MergePlan.of(run.graph, [fit, gone])
    order, known = scored(run, "identity", "compose", "fit")
    known[mixed.candidates] = -0.5
    racers = contenders(run, [*order, mixed], known)
    # Second of all plans, but third and fourth of those without fits are still asked.
    assert racers == [order[0], mixed, order[1], order[2]]


def test_without_a_race_the_best_wholes_are_contenders(unraced: Run) -> None:
    order, known = scored(unraced, "fit", "compose", "identity")
    best = contenders(unraced, order[::-1], known)
    assert best == order[: unraced.recipe.search.finalists]


def test_better_wholes_are_measured_and_join_the_finalists(
    unraced: Run, monkeypatch: pytest.MonkeyPatch
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


def test_what_is_not_better_is_not_built(unraced: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[MergePlan] = []
    score_by(monkeypatch, asked, better=False)
    closed, before, _ = widened(unraced)
    assert len(asked) > before == len(closed.finalists)


def test_where_plans_race_the_best_of_every_family_are_measured(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[MergePlan] = []
    score_by(monkeypatch, asked, better=False)
    closed, before, _ = widened(run)
    added = closed.finalists[before:]
    assert all(f.measured is not None for f in added)
    assert any(kinds(f.plan) == {"identity"} for f in added)
    assert len(added) <= RACERS * len(families())
    for family in families():
        within = [f for f in closed.finalists if kinds(f.plan) <= set(family)]
        offered = [plan for plan in asked if kinds(plan) <= set(family)]
        assert len(within) >= min(RACERS, len(offered))


def chosen(run: Run) -> tuple[Json, list[Json]]:
    rows = read_json(run.folder / "finalists.json", "finalists")["finalists"]
    (chosen,) = [row for row in rows if row["chosen"]]
    return chosen, rows


def test_the_plan_that_learns_most_is_chosen(run: Run) -> None:
    taken, rows = chosen(run)
    raced = [row["race_scores"] for row in rows if row["race_scores"] is not None]
    furthest = max(map(len, raced))
    means = [sum(scores) / furthest for scores in raced if len(scores) == furthest]
    assert 1 < len(means) < len(raced) and len(set(means)) > 1
    assert len(taken["race_scores"]) == furthest
    assert sum(taken["race_scores"]) / furthest == max(means)
    assert all(row["joint_score"] is not None for row in rows if row["race_scores"] is not None)


def test_without_a_race_the_best_whole_of_those_that_meet_the_budget_is_chosen(
    runs: Path, unraced: Run
) -> None:
    run_stage("search", RunOptions("tiny", runs, overrides=UNRACED))
    taken, rows = chosen(unraced)
    whole = [row["joint_score"] for row in rows if row["joint_score"] is not None]
    assert len(whole) > 1
    assert taken["joint_score"] == max(whole)
    assert all(row["race_scores"] is None for row in rows)
