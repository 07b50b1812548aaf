"""Plans of about a wanted measured latency: the best by an arm's own rule, or a blind draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.studies.arms import Arm
from benchmarks.studies.settings import calibration, starts_of
from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.errors import UsageError
from trt_layermerge.kinds import families
from trt_layermerge.pipeline.run import Run
from trt_layermerge.search import plan_of
from trt_layermerge.search.choosing import Goal, choose
from trt_layermerge.search.closing import (
    BudgetMissedError,
    Closed,
    Finalist,
    Key,
    Tools,
    close_loop,
)
from trt_layermerge.search.joint import JointScores, contenders
from trt_layermerge.search.nearby import perturbed
from trt_layermerge.search.problem import Problem, decides_alone
from trt_layermerge.search.race import race
from trt_layermerge.search.sampling import sample_plans, useful
from trt_layermerge.session.images import images_of
from trt_layermerge.session.latency import Latencies
from trt_layermerge.session.searching import (
    BUILDS,
    WholeNetworks,
    goal_of,
    loop_tools,
    problem_of,
)
from trt_layermerge.session.training import Racers

TOLERANCE = 0.02
"""Largest relative difference from the wanted latency that counts as equal."""

SAMPLES, MEASURED, DRAWS = 1000, 8, 3
"""Random plans that are drawn; how many plans are measured at a time; how often."""

PERTURBED, SPREADS = 24, (0.0, 0.3, 0.7, 1.2)
"""Perturbed tables that are solved in each round, and the spreads of their losses."""

SHORTLIST, AGAIN = 6, 3
"""Plans that are measured a second time before one is taken, and how much longer."""

Worth = Mapping[Key, tuple[float, ...]]
"""How good plans are, by their candidates; higher is better."""


@dataclass(frozen=True)
class Search:
    """What an arm looks for a plan with.

    Attributes:
        problem: Its candidates, what they are worth, and what it maximises.
        latencies: What was measured before.
        whole: Measures, scores and trains the networks of plans.
        goal: The latency that is wanted, and how hard it is looked for.
    """

    problem: Problem
    latencies: Latencies
    whole: WholeNetworks
    goal: Goal

    @property
    def tools(self) -> Tools:
        """What the closed loop needs done."""
        settings = self.whole.starts.settings
        return loop_tools(self.problem, self.latencies, settings, self.whole)

    @property
    def tell(self) -> Callbacks:
        """What is called meanwhile."""
        return self.whole.networks.tell

    @property
    def scores(self) -> JointScores:
        """Joint losses, none of them worked out yet."""
        return JointScores(self.problem, self.whole, self.tell)

    def near(self, ms: float) -> bool:
        """Whether a latency counts as equal to the wanted one."""
        return is_near(ms, self.goal.budget_ms)


def search_of(run: Run, arm: Arm, speedup: float, racing: Path) -> Search:
    """Returns what an arm looks for a plan of a measured speed-up with.

    Args:
        run: The run that holds the arm's tables.
        arm: The method.
        speedup: What the whole network is to measure.
        racing: Empty folder, for what the plans of one race come to.

    Raises:
        UsageError: If the tables lack kinds that the arm may use.
    """
    section = run.recipe.search
    lacking = sorted({*arm.kinds} - {*section.kinds})
    if arm.tables != "paper" and lacking:
        raise UsageError(
            f"{arm.name} may use {', '.join(lacking)}, of which the tables hold nothing; choose "
            "another folder, and --set 'search.kinds=[compose, fit, identity, lowrank, narrow]'"
        )
    objective = section.objective.model_copy(update={"form": arm.form, "capacity": arm.capacity})
    changes: Json = {"speedup": speedup, "objective": objective}
    if arm.mode not in ("random", "untouched", "pruned"):
        changes["mode"] = arm.mode
    if not arm.race:
        changes["race_steps"] = 0
    recipe = run.recipe.model_copy(update={"search": section.model_copy(update=changes)})
    run = replace(run, recipe=recipe)
    session, val, score = run.session, run.data("val"), calibration(run)[1]
    starts, original_ms = starts_of(run), session.latencies.original_ms
    whole = WholeNetworks(
        session.networks,
        starts,
        Racers(
            starts,
            session.teaching(run.train, val),
            score if val is None else val,
            racing,
            session.macs,
        ),
        images_of(score),
        original_ms,
        BUILDS if recipe.measure.engines else 1,
        decides_alone(session.importance),
    )
    allowed = tuple(c for c in session.candidates if c.kind in arm.kinds)
    problem = problem_of(session.graph, allowed, session.importance, recipe)
    return Search(problem, session.latencies, whole, goal_of(recipe, original_ms))


def chosen_plan(search: Search) -> tuple[Finalist, str]:
    """Returns the plan that the pipeline's search comes to, or one that is nearer to the target.

    The search looks for the best plan that is no slower than wanted, which may be much faster. To
    compare at equal latency, the best one that measures about as wanted is then taken, by the arm's
    own rule, though that rule would prefer the faster one; where there is none, the nearest. Plans
    that race are always looked for among those that measure as wanted.

    Returns:
        The plan, and how it was found: ``search`` or ``near``.
    """
    goal = search.goal
    try:
        if search.whole.races:
            closed = close_loop(goal.budget_ms, goal.finalists, goal.loops, search.tools)
        else:
            choice = choose(search.problem, search.tools, search.whole, goal, search.tell)
            measured, closed = choice.measured, choice.closed
            if measured is not None and search.near(measured.ms):
                chosen = Finalist(choice.chosen.plan, choice.chosen.predicted_ms, measured)
                return chosen, "search"
    except BudgetMissedError as missed:
        closed = missed.closed
    return near_target(search, closed), "near"


def near_target(search: Search, closed: Closed) -> Finalist:
    """Returns the best plan by the arm's own rule that measures about as wanted, or the nearest.

    Beside the finalists of the search, plans are looked at that solve perturbed losses exactly,
    the best true scores first, in up to ``DRAWS`` rounds of ``MEASURED`` (of each family, where
    plans race), each of which corrects the predictions by what was measured before.
    """
    found = list(closed.finalists)
    raced = families() if search.whole.races else families()[:1]
    for seed in range(DRAWS):
        table = _corrected(search, found)
        tried = {f.plan.candidates for f in found}
        new: dict[Key, MergePlan] = {}
        for kinds in raced:
            solved = solved_near(search, table, seed, kinds)
            untried = [plan for plan in solved if plan.candidates not in tried]
            new |= {plan.candidates: plan for plan in untried[:MEASURED]}
        found += _measured(search, list(new.values()))
    near = [f.plan for f in found if search.near(f.ms)]
    if not near:
        return nearest(search, found)
    again = _measured(search, shortlist(search, near))
    good = [f for f in again if search.near(f.ms)]
    if not good:
        return nearest(search, again)
    worth = worth_of(search, [f.plan for f in good])
    return max(good, key=lambda f: worth[f.plan.candidates])


def nearest(search: Search, found: Sequence[Finalist]) -> Finalist:
    """Returns the plan that measured nearest to the wanted latency."""
    return min(found, key=lambda f: abs(f.ms / search.goal.budget_ms - 1))


def shortlist(search: Search, plans: Sequence[MergePlan]) -> list[MergePlan]:
    """Returns the plans that may be the best by the arm's own rule."""
    if search.whole.races:
        scores = search.scores
        scores.of(plans, "scoring plans")
        return contenders(plans, scores, search.goal.finalists)
    worth = worth_of(search, plans)
    return sorted(plans, key=lambda plan: worth[plan.candidates], reverse=True)[:SHORTLIST]


def solved_near(
    search: Search, table: LatencyTable, seed: int, kinds: Sequence[str] | None = None
) -> list[MergePlan]:
    """Returns plans of about the wanted predicted latency, each the best under perturbed losses.

    They are found by the exact search under the arm's objective (``search.nearby``), and sorted by
    their true scores, the best first.
    """
    problem = search.problem
    plans: dict[Key, MergePlan] = {}
    offered = [c for c in problem.candidates if kinds is None or c.kind in kinds]
    rng = np.random.default_rng(seed)
    for number in range(PERTURBED):
        spread = SPREADS[number % len(SPREADS)]
        found = problem.frontier(table, perturbed(problem.importance, spread, rng), offered)
        for index in range(len(found)):
            if search.near(found.latency_ms[index] + table.overhead_ms):
                plan = plan_of(found.solution(index), table.overhead_ms)
                plans[plan.candidates] = plan
    priced = [problem.priced(table, plan) for plan in plans.values()]
    return sorted(priced, key=lambda plan: -(plan.score or 0.0))


def worth_of(search: Search, plans: Sequence[MergePlan]) -> Worth:
    """Returns how good the arm's own rule thinks each plan is.

    As in ``search.choosing``: what it learns in a race; without one the joint loss of the repaired
    network, or under the paper's protocol the score of the table.
    """
    found: list[tuple[float, ...]]
    if search.whole.alone:
        found = [(plan.score or 0.0,) for plan in plans]
    elif search.whole.races:
        found = [raced.merit for raced in race(plans, search.whole, search.tell)]
    else:
        found = [(score,) for score in search.scores.of(plans, "scoring plans")]
    return {plan.candidates: worth for plan, worth in zip(plans, found, strict=True)}


def is_near(ms: float, target_ms: float) -> bool:
    """Whether a latency counts as equal to the wanted one."""
    return abs(ms / target_ms - 1) <= TOLERANCE


def _corrected(search: Search, found: Sequence[Finalist]) -> LatencyTable:
    """Returns the latency table, corrected by what was measured."""
    return search.tools.fit([f.measured for f in found if f.measured is not None])


def _measured(search: Search, plans: Sequence[MergePlan]) -> list[Finalist]:
    """Returns plans with their latencies, measured ``AGAIN`` times as long as usual."""
    if not plans:
        return []
    rounds = AGAIN * search.whole.starts.settings.measure.rounds
    _, found = search.whole.networks.measure(plans, search.goal.original_ms, rounds)
    return [Finalist(m.plan, m.plan.latency_ms or m.ms, m) for m in found]


def drawn_near(search: Search, table: LatencyTable, seed: int) -> list[MergePlan]:
    """Returns random plans, those predicted nearest to the wanted latency first."""
    problem, target_ms = search.problem, search.goal.budget_ms
    faster = useful(problem.graph, problem.candidates, table, problem.precision, problem.batch)
    known = [c for c in faster if c in problem.importance]
    plans = {p.candidates: p for p in sample_plans(problem.graph, known, SAMPLES, 1000 + seed)}
    priced = [problem.priced(table, plan) for plan in plans.values()]
    return sorted(priced, key=lambda p: abs((p.latency_ms or 0.0) / target_ms - 1))


def random_plan(search: Search, seed: int) -> Finalist:
    """Returns a plan that was drawn blindly among those of about the wanted latency.

    Each of ``DRAWS`` rounds corrects the predictions by what was measured before it.
    """
    found: list[Finalist] = []
    for _ in range(DRAWS):
        tried = {f.plan.candidates for f in found}
        plans = drawn_near(search, _corrected(search, found), seed)
        new = [plan for plan in plans if plan.candidates not in tried][:MEASURED]
        if not new:
            break
        found += _measured(search, new)
        if any(search.near(f.ms) for f in found):
            break
    return nearest(search, found)
