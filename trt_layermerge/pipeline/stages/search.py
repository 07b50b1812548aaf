"""``search``: tables and a budget → ``frontier.json``, ``finalists.json`` and ``plan.json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from trt_layermerge.core.conv import spec_from_json
from trt_layermerge.core.jsonio import Json, damage, read_json, read_lines, write_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.measure.fit import Observation, fit_latency
from trt_layermerge.pipeline.closing import (
    BudgetMissedError,
    Closed,
    Finalist,
    Tools,
    close_loop,
    predict,
)
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.folder import outdated, unfinished
from trt_layermerge.pipeline.networks import Measured, measure_plans, specs_of
from trt_layermerge.pipeline.recorded import Recorded, source_of
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.pipeline.versions import versions
from trt_layermerge.search import Frontier, Objective, frontier

Ranked: TypeAlias = tuple[Finalist, float | None]
"""A finalist with its joint loss, if that was worked out."""

OUTPUTS = ("frontier.json", "finalists.json", "plan.json")

BUILDS = 3
"""How often the engine of the chosen network is built: builders choose kernels by chance too."""


@dataclass(frozen=True)
class Choice:
    """What a search came to.

    Attributes:
        closed: Everything that was looked at.
        ranked: The finalists that may be chosen, the best first.
        chosen: One of the finalists.
        measured: How it measured in the end; None where it is predicted only.
    """

    closed: Closed
    ranked: list[Ranked]
    chosen: Finalist
    measured: Measured | None


def _settings(context: Context) -> Json:
    search, measure = context.recipe.search, context.recipe.measure
    return {
        "search": search.model_dump(mode="json", exclude={"rules", "limits"}),
        "seed": context.seed,
        **(source_of(context) if measure.recorded else {}),
    }


def _run(context: Context) -> tuple[str, ...]:
    original_ms, observations = _networks(context)
    search = context.recipe.search
    budget_ms = search.budget_ms or original_ms / search.speedup
    tools = _tools(context, original_ms, observations)
    choose = _choose_recorded if context.recipe.measure.recorded else _choose
    try:
        choice = choose(context, tools, original_ms, budget_ms)
    except BudgetMissedError as missed:
        _leave_frontier(context, missed.closed)
        raise
    _write(context, choice, original_ms, budget_ms)
    return OUTPUTS


def _choose(context: Context, tools: Tools, original_ms: float, budget_ms: float) -> Choice:
    """Returns the best plan that was built, measured, and measured again within the budget."""
    search = context.recipe.search
    limit_ms = budget_ms * (1 - search.headroom)
    closed = close_loop(limit_ms, search.finalists, search.loops, tools, budget_ms)
    if not closed.meeting(limit_ms):
        context.reporter.note("the budget is met only without its headroom")
        limit_ms = budget_ms
    meeting = closed.meeting(limit_ms)
    context.reporter.note(
        f"{len(closed.finalists)} networks built and measured, "
        f"{len(meeting)} of them within {limit_ms:.4g} ms"
    )
    ranked = _rank(context, meeting[: search.finalists])
    for finalist, _ in ranked:
        again = _measure_again(context, finalist.plan, original_ms)
        took_ms = again.clock_ms if search.budget_ms else again.ms
        if took_ms <= budget_ms:
            return Choice(closed, ranked, finalist, again)
        context.reporter.note(
            f"a finalist took {took_ms:.4g} ms when measured again, more than {budget_ms:.4g} ms"
        )
    raise BudgetMissedError(
        f"every finalist was slower than {budget_ms:.4g} ms when measured again; the machine is "
        "busy or the budget too close to the limit: try again, raise it, or raise search.headroom",
        closed,
    )


def _measure_again(context: Context, plan: MergePlan, original_ms: float) -> Measured:
    """Returns a second measurement, for the first one flatters what was picked by it.

    Engines are built anew for it, several times.
    """
    rounds, builds = 2 * context.recipe.measure.rounds, BUILDS if context.engines else 1
    _, (again,) = measure_plans(context, [plan], original_ms, rounds, builds)
    if len(again.ratios) > 1:
        context.reporter.note(
            f"{len(again.ratios)} builds of the network are {min(again.ratios):.3f} to "
            f"{max(again.ratios):.3f} times as fast as the original"
        )
    return again


def _choose_recorded(
    context: Context, tools: Tools, original_ms: float, budget_ms: float
) -> Choice:
    """Returns the best plan that was measured within the budget elsewhere, or else is predicted to.

    Raises:
        BudgetMissedError: If none is.
    """
    search, recorded = context.recipe.search, Recorded.of(context)
    _, known = recorded.measured(context, "finalist", original_ms)
    limit_ms = budget_ms * (1 - search.headroom)
    closed = predict(limit_ms, search.finalists, tools, known)
    meeting = closed.meeting(limit_ms) or closed.meeting(budget_ms)
    if meeting:
        ranked = _rank(context, meeting[: search.finalists])
        chosen = ranked[0][0]
        return Choice(closed, ranked, chosen, chosen.measured)
    promised = [f for f in closed.finalists if f.measured is None and f.predicted_ms <= budget_ms]
    if not promised:
        raise BudgetMissedError(
            f"no network is predicted to meet {budget_ms:.4g} ms on {closed.table.device}: the "
            f"fastest would take {closed.fastest_ms:.4g} ms; raise --budget-ms, lower --speedup, "
            "or allow more candidates (--rules full)",
            closed,
        )
    within = [f for f in promised if f.predicted_ms <= limit_ms] or promised
    context.reporter.note(
        "the plan is predicted, not measured: to measure it and its neighbours, "
        f"{recorded.remedy}, import the answers (--import FILE) and search again"
    )
    chosen = max(within, key=lambda f: f.plan.score or 0.0)
    return Choice(closed, [(chosen, None)], chosen, None)


def _networks(context: Context) -> tuple[float, list[Observation]]:
    """Returns the original's latency and the networks that ``latency`` measured."""
    path = context.folder / "networks.jsonl"
    header, rows = read_lines(path, "networks")
    with damage(path):
        observations = [
            Observation(tuple(spec_from_json(s) for s in row["specs"]), float(row["ms"]))
            for row in rows
        ]
        return float(header["original_ms"]), observations


def _tools(context: Context, original_ms: float, before: list[Observation]) -> Tools:
    measure, search = context.recipe.measure, context.recipe.search
    bare = LatencyTable.load(context.folder / "latency_bare.jsonl")

    def fit(measured: Sequence[Measured]) -> LatencyTable:
        seen = [Observation(specs_of(m.plan), m.ms) for m in measured if m.error is None]
        return fit_latency(bare, [*before, *seen], measure.precision, measure.batch)

    def points(table: LatencyTable) -> Frontier:
        return frontier(
            context.graph,
            context.candidates,
            table,
            context.importance,
            precision=measure.precision,
            batch=measure.batch,
            mode=search.mode,
            objective=_objective(context),
        )

    def build(plans: Sequence[MergePlan]) -> Sequence[Measured]:
        return measure_plans(context, plans, original_ms, measure.rounds)[1]

    def price(table: LatencyTable, plan: MergePlan) -> MergePlan:
        return _priced(context, table, plan)

    return Tools(fit, points, build, price)


def _objective(context: Context) -> Objective:
    wanted = context.recipe.search.objective
    if wanted.form != "auto":
        return Objective(wanted.form, wanted.capacity)
    return Objective("exp" if _published(context) else "delta", wanted.capacity)


def _published(context: Context) -> bool:
    """Whether the table, whatever the recipe says by now, was made by the paper's protocol."""
    return context.importance.notes.get("method") == "finetune"


def _rank(context: Context, meeting: list[Finalist]) -> list[Ranked]:
    """Returns the finalists with their true joint loss after sequential repair, the best first.

    The table adds up losses of single replacements; here each network is repaired whole and
    scored on the images that the table was scored on. Under the paper's protocol, and for a single
    finalist, the order of the table stays and the joint loss is None.
    """
    if _published(context) or len(meeting) == 1:
        return [(finalist, None) for finalist in meeting]
    from trt_layermerge.pipeline.repaired import joint_delta

    capacity = context.recipe.search.objective.capacity
    scores = []
    for count, finalist in enumerate(meeting):
        context.reporter.progress("scoring finalists", count, len(meeting))
        reward = capacity * sum(c.nonlinear for c in finalist.plan.candidates)
        scores.append(joint_delta(context, finalist.plan) + reward)
    context.reporter.progress("scoring finalists", len(meeting), len(meeting))
    order = sorted(range(len(meeting)), key=lambda i: -scores[i])
    return [(meeting[i], scores[i]) for i in order]


def _write(context: Context, choice: Choice, original_ms: float, budget_ms: float) -> None:
    joint = {finalist.plan.candidates: score for finalist, score in choice.ranked}
    rows = [
        {
            "predicted_ms": f.predicted_ms,
            "measured_ms": f.ms if math.isfinite(f.ms) else None,
            "error": f.measured.error if f.measured else None,
            "score": f.plan.score,
            "joint_score": joint.get(f.plan.candidates),
            "chosen": f is choice.chosen,
            "candidates": [c.to_json() for c in f.plan.changed],
        }
        for f in choice.closed.finalists
    ]
    _write_frontier(context, choice.closed)
    write_json(context.folder / "finalists.json", "finalists", {"finalists": rows})
    measured = choice.measured
    notes = {
        "versions": versions(),
        "measured_ms": measured.ms if measured else None,
        "measured_speedup": measured.ratio if measured else None,
        "measured_builds": list(measured.ratios) if measured else [],
        "original_ms": original_ms,
        "tables": context.folder.hashes(("latency.jsonl", "importance.jsonl")),
        "seed": context.seed,
    }
    chosen = choice.chosen
    plan = replace(chosen.plan, latency_ms=chosen.predicted_ms, budget_ms=budget_ms, notes=notes)
    plan.save(context.folder / "plan.json")


def _leave_frontier(context: Context, closed: Closed) -> None:
    """Writes the frontier of a search that found no plan, unless that of a finished one stands.

    What a finished search on the same tables left belongs together and to later stages.
    """
    files = ("frontier.json",)
    if unfinished(context.folder, files) or outdated(context.folder, files):
        _write_frontier(context, closed)


def _write_frontier(context: Context, closed: Closed) -> None:
    overhead = closed.table.overhead_ms
    kept = _priced(context, closed.table, MergePlan.of(context.graph, []))
    write_json(
        context.folder / "frontier.json",
        "frontier",
        {
            "points": [[latency + overhead, score] for latency, score in closed.frontier],
            "untouched": [kept.latency_ms, kept.score],
            "overhead_ms": overhead,
            "prediction": dict(closed.table.notes),
        },
    )


def _priced(context: Context, table: LatencyTable, plan: MergePlan) -> MergePlan:
    """Returns a plan with its predicted latency and its score."""
    measure, objective = context.recipe.measure, _objective(context)
    costs = (table.cost_ms(c, measure.precision, measure.batch) for c in plan.candidates)
    score = sum(objective.value(c, context.importance[c]) for c in plan.candidates)
    return replace(plan, latency_ms=table.overhead_ms + sum(costs), score=score)


def _result(context: Context) -> Json:
    body = read_json(context.folder / "plan.json", "plan")
    points = read_json(context.folder / "frontier.json", "frontier")["points"]
    return {**body, **body["notes"], "frontier_points": len(points)}


INPUTS = (
    "graph.json",
    "candidates.jsonl",
    "latency_bare.jsonl",
    "networks.jsonl",
    "latency.jsonl",
    "importance.jsonl",
)
STAGE = Stage("search", INPUTS, _settings, _run, _result)
