"""Plans of about a wanted measured latency: the best by an arm's own rule, or a blind draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.studies.arms import Arm
from benchmarks.studies.settings import with_values
from trt_layermerge.core.conv import spec_from_json
from trt_layermerge.core.jsonio import Json, read_lines
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.kinds import families
from trt_layermerge.measure.fit import Observation
from trt_layermerge.pipeline import race
from trt_layermerge.pipeline.choosing import choose, tools_of
from trt_layermerge.pipeline.closing import (
    BudgetMissedError,
    Closed,
    Finalist,
    Key,
    Tools,
    close_loop,
)
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.joint import JointScores, contenders
from trt_layermerge.pipeline.networks import measure_plans, sample_plans, useful
from trt_layermerge.pipeline.objective import frontier_of, priced, published
from trt_layermerge.search import plan_of
from trt_layermerge.search.nearby import perturbed

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


def chosen_plan(
    context: Context,
    arm: Arm,
    original_ms: float,
    networks: Sequence[Observation],
    target_ms: float,
) -> tuple[Finalist, str]:
    """Returns the plan that the pipeline's search comes to, or one that is nearer to the target.

    The search looks for the best plan that is no slower than wanted, which may be much faster. To
    compare at equal latency, the best one that measures about as wanted is then taken, by the arm's
    own rule, though that rule would prefer the faster one; where there is none, the nearest. Plans
    that race are always looked for among those that measure as wanted.

    Returns:
        The plan, and how it was found: ``search`` or ``near``.
    """
    search = context.recipe.search
    objective = search.objective.model_copy(update={"form": arm.form, "capacity": arm.capacity})
    changes: Json = {"mode": arm.mode, "objective": objective}
    if not arm.race:
        changes["race_steps"] = 0
    context = with_values(context, search=search.model_copy(update=changes))
    tools = tools_of(context, original_ms, networks)
    try:
        if arm.race:
            closed = close_loop(target_ms, search.finalists, search.loops, tools)
        else:
            choice = choose(context, tools, original_ms, target_ms)
            measured, closed = choice.measured, choice.closed
            if measured is not None and is_near(measured.ms, target_ms):
                chosen = Finalist(choice.chosen.plan, choice.chosen.predicted_ms, measured)
                return chosen, "search"
    except BudgetMissedError as missed:
        closed = missed.closed
    return near_target(context, tools, closed, original_ms, target_ms), "near"


def near_target(
    context: Context, tools: Tools, closed: Closed, original_ms: float, target_ms: float
) -> Finalist:
    """Returns the best plan by the run's own rule that measures about as wanted, or the nearest.

    Beside the finalists of the search, plans are looked at that solve perturbed losses exactly,
    the best true scores first, in up to ``DRAWS`` rounds of ``MEASURED`` (of each family, where
    plans race), each of which corrects the predictions by what was measured before.
    """
    found, rounds = list(closed.finalists), AGAIN * context.recipe.measure.rounds
    raced = families() if race.wanted(context) else families()[:1]
    for seed in range(DRAWS):
        table = tools.fit([f.measured for f in found if f.measured is not None])
        tried = {f.plan.candidates for f in found}
        new: dict[Key, MergePlan] = {}
        for kinds in raced:
            solved = solved_near(context, table, target_ms, seed, kinds)
            untried = [plan for plan in solved if plan.candidates not in tried]
            new |= {plan.candidates: plan for plan in untried[:MEASURED]}
        found += _measured(context, list(new.values()), original_ms, rounds)
    near = [f.plan for f in found if is_near(f.ms, target_ms)]
    if not near:
        return nearest(found, target_ms)
    again = _measured(context, shortlist(context, near), original_ms, rounds)
    good = [f for f in again if is_near(f.ms, target_ms)]
    if not good:
        return nearest(again, target_ms)
    worth = worth_of(context, [f.plan for f in good])
    return max(good, key=lambda f: worth[f.plan.candidates])


def nearest(found: Sequence[Finalist], target_ms: float) -> Finalist:
    """Returns the plan that measured nearest to a latency."""
    return min(found, key=lambda f: abs(f.ms / target_ms - 1))


def shortlist(context: Context, plans: Sequence[MergePlan]) -> list[MergePlan]:
    """Returns the plans that may be the best by the run's own rule."""
    if race.wanted(context):
        scores = JointScores(context)
        scores.of(plans, "scoring plans")
        return contenders(context, plans, scores)
    worth = worth_of(context, plans)
    return sorted(plans, key=lambda plan: worth[plan.candidates], reverse=True)[:SHORTLIST]


def solved_near(
    context: Context,
    table: LatencyTable,
    target_ms: float,
    seed: int,
    kinds: Sequence[str] | None = None,
) -> list[MergePlan]:
    """Returns plans of about a predicted latency, each the best under some perturbed losses.

    They are found by the exact search under the arm's objective (``search.nearby``), and sorted by
    their true scores, the best first.
    """
    plans: dict[Key, MergePlan] = {}
    offered = [c for c in context.candidates if kinds is None or c.kind in kinds]
    rng = np.random.default_rng(seed)
    for number in range(PERTURBED):
        spread = SPREADS[number % len(SPREADS)]
        found = frontier_of(context, table, perturbed(context.importance, spread, rng), offered)
        for index in range(len(found)):
            if is_near(found.latency_ms[index] + table.overhead_ms, target_ms):
                plan = plan_of(found.solution(index), table.overhead_ms)
                plans[plan.candidates] = plan
    priced_plans = [priced(context, table, plan) for plan in plans.values()]
    return sorted(priced_plans, key=lambda plan: -(plan.score or 0.0))


def worth_of(context: Context, plans: Sequence[MergePlan]) -> Worth:
    """Returns how good the run's own rule thinks each plan is.

    As in ``pipeline.choosing``: what it learns in a race; without one the joint loss of the
    repaired network, or under the paper's protocol the score of the table.
    """
    found: list[tuple[float, ...]]
    if published(context):
        found = [(plan.score or 0.0,) for plan in plans]
    elif race.wanted(context):
        found = [raced.merit for raced in race.race(context, plans)]
    else:
        found = [(score,) for score in JointScores(context).of(plans, "scoring plans")]
    return {plan.candidates: worth for plan, worth in zip(plans, found, strict=True)}


def is_near(ms: float, target_ms: float) -> bool:
    """Whether a latency counts as equal to the wanted one."""
    return abs(ms / target_ms - 1) <= TOLERANCE


def _measured(
    context: Context, plans: Sequence[MergePlan], original_ms: float, rounds: int
) -> list[Finalist]:
    """Returns plans with their measured latencies."""
    if not plans:
        return []
    _, found = measure_plans(context, plans, original_ms, rounds)
    return [Finalist(m.plan, m.plan.latency_ms or m.ms, m) for m in found]


def drawn_near(
    context: Context, table: LatencyTable, target_ms: float, seed: int
) -> list[MergePlan]:
    """Returns random plans, those predicted nearest to a latency first."""
    measure, graph = context.recipe.measure, context.graph
    faster = useful(graph, context.candidates, table, measure.precision, measure.batch)
    known = [c for c in faster if c in context.importance]
    plans = {p.candidates: p for p in sample_plans(graph, known, SAMPLES, 1000 + seed)}
    priced_plans = [priced(context, table, plan) for plan in plans.values()]
    return sorted(priced_plans, key=lambda p: abs((p.latency_ms or 0.0) / target_ms - 1))


def random_plan(context: Context, target_ms: float, seed: int) -> Finalist:
    """Returns a plan that was drawn blindly among those of about the wanted latency.

    Each of ``DRAWS`` rounds corrects the predictions by what was measured before it.
    """
    original_ms, networks = seen_networks(context)
    tools = tools_of(context, original_ms, networks)
    found: list[Finalist] = []
    rounds = AGAIN * context.recipe.measure.rounds
    for _ in range(DRAWS):
        table = tools.fit([f.measured for f in found if f.measured is not None])
        tried = {f.plan.candidates for f in found}
        plans = drawn_near(context, table, target_ms, seed)
        new = [plan for plan in plans if plan.candidates not in tried][:MEASURED]
        if not new:
            break
        found += _measured(context, new, original_ms, rounds)
        if any(is_near(f.ms, target_ms) for f in found):
            break
    return nearest(found, target_ms)


def seen_networks(context: Context) -> tuple[float, list[Observation]]:
    """Returns the original's latency and the networks that its ``latency`` stage measured."""
    header, rows = read_lines(context.folder / "networks.jsonl", "networks")
    found = [
        Observation(tuple(spec_from_json(s) for s in row["specs"]), float(row["ms"]))
        for row in rows
    ]
    return float(header["original_ms"]), found
