"""``search``: tables and a budget → ``frontier.json``, ``finalists.json`` and ``plan.json``."""

from __future__ import annotations

import math
from dataclasses import replace

from trt_layermerge.core.conv import spec_from_json
from trt_layermerge.core.jsonio import Json, damage, read_json, read_lines, write_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.measure.fit import Observation
from trt_layermerge.pipeline import race
from trt_layermerge.pipeline.choosing import Choice, Ranked, choose, choose_recorded, tools_of
from trt_layermerge.pipeline.closing import BudgetMissedError, Closed
from trt_layermerge.pipeline.context import Context, data_inputs
from trt_layermerge.pipeline.folder import outdated, unfinished
from trt_layermerge.pipeline.objective import priced
from trt_layermerge.pipeline.recorded import source_of
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.pipeline.versions import versions

OUTPUTS = ("frontier.json", "finalists.json", "plan.json")


def _settings(context: Context) -> Json:
    search, measure = context.recipe.search, context.recipe.measure
    # How the plans race is left out, so that what was chosen can be trained in other ways too.
    return {
        "search": search.model_dump(mode="json", exclude={"rules", "limits"}),
        "seed": context.seed,
        **({"judges": data_inputs(context.recipe.data.val)} if race.asked(context) else {}),
        **(source_of(context) if measure.recorded else {}),
    }


def _run(context: Context) -> tuple[str, ...]:
    original_ms, observations = _networks(context)
    search = context.recipe.search
    budget_ms = search.budget_ms or original_ms / search.speedup
    tools = tools_of(context, original_ms, observations)
    chosen_by = choose_recorded if context.recipe.measure.recorded else choose
    try:
        choice = chosen_by(context, tools, original_ms, budget_ms)
    except BudgetMissedError as missed:
        _leave_frontier(context, missed.closed)
        raise
    _write(context, choice, original_ms, budget_ms)
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


def _write(context: Context, choice: Choice, original_ms: float, budget_ms: float) -> None:
    ranked = {one.finalist.plan.candidates: one for one in choice.ranked}
    rows = [
        {
            "predicted_ms": f.predicted_ms,
            "measured_ms": f.ms if math.isfinite(f.ms) else None,
            "error": f.measured.error if f.measured else None,
            "score": f.plan.score,
            "joint_score": _finite(known.joint),
            "race_scores": [_finite(s) for s in known.raced.scores] if known.raced else None,
            "chosen": f is choice.chosen,
            "candidates": [c.to_json() for c in f.plan.changed],
        }
        for f in choice.closed.finalists
        for known in [ranked.get(f.plan.candidates, Ranked(f))]
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


def _finite(score: float | None) -> float | None:
    """Returns a score as JSON can hold it: None too where a network's answers are not finite."""
    return score if score is not None and math.isfinite(score) else None


def _leave_frontier(context: Context, closed: Closed) -> None:
    """Writes the frontier of a search that found no plan, unless that of a finished one stands.

    What a finished search on the same tables left belongs together and to later stages.
    """
    files = ("frontier.json",)
    if unfinished(context.folder, files) or outdated(context.folder, files):
        _write_frontier(context, closed)


def _write_frontier(context: Context, closed: Closed) -> None:
    overhead = closed.table.overhead_ms
    kept = priced(context, closed.table, MergePlan.of(context.graph, []))
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
