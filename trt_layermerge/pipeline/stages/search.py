"""``search``: tables and a budget → ``frontier.json``, ``finalists.json`` and ``plan.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from trt_layermerge.core.conv import spec_from_json
from trt_layermerge.core.jsonio import Json, damage, read_json, read_lines, write_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.errors import InfeasibleBudgetError
from trt_layermerge.measure.fit import Observation, fit_latency
from trt_layermerge.pipeline.closing import Closed, Finalist, Tools, close_loop
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.networks import Measured, measure_plans, specs_of
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.pipeline.versions import versions
from trt_layermerge.search import Frontier, Objective, frontier

Ranked: TypeAlias = tuple[Finalist, float | None]
"""A finalist with its joint loss, if that was worked out."""

OUTPUTS = ("frontier.json", "finalists.json", "plan.json")


def _settings(context: Context) -> Json:
    search = context.recipe.search
    return {
        "search": search.model_dump(mode="json", exclude={"rules", "limits"}),
        "seed": context.seed,
    }


def _run(context: Context) -> tuple[str, ...]:
    original_ms, observations = _networks(context)
    budget_ms = context.recipe.search.budget_ms or original_ms / context.recipe.search.speedup
    limit_ms = budget_ms * (1 - context.recipe.search.headroom)
    search = context.recipe.search
    tools = _tools(context, original_ms, observations)
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
    chosen, measured = _confirm(context, ranked, original_ms, budget_ms)
    _write(context, closed, ranked, chosen, measured, (original_ms, budget_ms))
    return OUTPUTS


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
        seen = [Observation(specs_of(m.plan), m.ms) for m in measured]
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

    return Tools(fit, points, build)


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


def _confirm(
    context: Context, ranked: list[Ranked], original_ms: float, budget_ms: float
) -> tuple[Finalist, Measured]:
    """Returns the best finalist that also meets the budget when measured once more.

    The finalists were picked among several by their measurements, which flatters the picked.

    Raises:
        InfeasibleBudgetError: If none does.
    """
    rounds = 2 * context.recipe.measure.rounds
    for finalist, _ in ranked:
        _, (again,) = measure_plans(context, [finalist.plan], original_ms, rounds)
        took_ms = again.clock_ms if context.recipe.search.budget_ms else again.ms
        if took_ms <= budget_ms:
            return finalist, again
        context.reporter.note(
            f"a finalist took {took_ms:.4g} ms when measured again, more than {budget_ms:.4g} ms"
        )
    raise InfeasibleBudgetError(
        f"every finalist was slower than {budget_ms:.4g} ms when measured again; the machine is "
        "busy or the budget too close to the limit: try again, raise it, or raise search.headroom"
    )


def _write(
    context: Context,
    closed: Closed,
    ranked: list[Ranked],
    chosen: Finalist,
    measured: Measured,
    targets: tuple[float, float],
) -> None:
    original_ms, budget_ms = targets
    joint = {finalist.plan.candidates: score for finalist, score in ranked}
    rows = [
        {
            "predicted_ms": f.predicted_ms,
            "measured_ms": f.measured.ms,
            "score": f.plan.score,
            "joint_score": joint.get(f.plan.candidates),
            "chosen": f is chosen,
            "candidates": [c.to_json() for c in f.plan.changed],
        }
        for f in closed.finalists
    ]
    overhead = closed.table.overhead_ms
    points = [[latency + overhead, score] for latency, score in closed.frontier]
    write_json(
        context.folder / "frontier.json",
        "frontier",
        {
            "points": points,
            "untouched": _untouched(context, closed.table),
            "overhead_ms": overhead,
            "prediction": dict(closed.table.notes),
        },
    )
    write_json(context.folder / "finalists.json", "finalists", {"finalists": rows})
    notes = {
        "versions": versions(),
        "measured_ms": measured.ms,
        "measured_speedup": measured.ratio,
        "original_ms": original_ms,
        "tables": context.folder.hashes(("latency.jsonl", "importance.jsonl")),
        "seed": context.seed,
    }
    plan = replace(chosen.plan, latency_ms=chosen.predicted_ms, budget_ms=budget_ms, notes=notes)
    plan.save(context.folder / "plan.json")


def _untouched(context: Context, table: LatencyTable) -> list[float]:
    """Returns predicted latency and score of the network as it is."""
    measure, objective = context.recipe.measure, _objective(context)
    kept = MergePlan.of(context.graph, []).candidates
    costs = (table.cost_ms(c, measure.precision, measure.batch) for c in kept)
    score = sum(objective.value(c, context.importance[c]) for c in kept)
    return [table.overhead_ms + sum(costs), score]


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
