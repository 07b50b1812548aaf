"""What a run's recipe wants: its objective, the frontier under it, and the price of a plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceTable, LatencyTable
from trt_layermerge.pipeline.context import Context
from trt_layermerge.search import Frontier, Objective, frontier


def published(context: Context) -> bool:
    """Whether the table, whatever the recipe says by now, was made by the paper's protocol."""
    return context.importance.notes.get("method") == "finetune"


def objective_of(context: Context) -> Objective:
    """Returns what the search maximises."""
    wanted = context.recipe.search.objective
    if wanted.form != "auto":
        return Objective(wanted.form, wanted.capacity)
    return Objective("exp" if published(context) else "delta", wanted.capacity)


def frontier_of(
    context: Context,
    table: LatencyTable,
    importance: ImportanceTable | None = None,
    candidates: Iterable[Candidate] | None = None,
) -> Frontier:
    """Returns the frontier under a latency table; importance and candidates are the run's own."""
    measure = context.recipe.measure
    return frontier(
        context.graph,
        context.candidates if candidates is None else candidates,
        table,
        context.importance if importance is None else importance,
        precision=measure.precision,
        batch=measure.batch,
        mode=context.recipe.search.mode,
        objective=objective_of(context),
    )


def priced(context: Context, table: LatencyTable, plan: MergePlan) -> MergePlan:
    """Returns a plan with its predicted latency and its score."""
    measure, objective = context.recipe.measure, objective_of(context)
    costs = (table.cost_ms(c, measure.precision, measure.batch) for c in plan.candidates)
    score = sum(objective.value(c, context.importance[c]) for c in plan.candidates)
    return replace(plan, latency_ms=table.overhead_ms + sum(costs), score=score)
