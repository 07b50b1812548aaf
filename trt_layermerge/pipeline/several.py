"""Several speed-ups from the same tables: a run of its own for each, beside that of the tables.

So each plan can be trained, merged and judged by itself, by the usual commands, and none overwrites
another.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace

from trt_layermerge.core.graph import LayerGraph, load_graph
from trt_layermerge.core.jsonio import Json, read_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.streams import alone_of, with_counterparts
from trt_layermerge.core.tables import ImportanceTable
from trt_layermerge.errors import (
    AccuracyGateError,
    InfeasibleBudgetError,
    LatencyGateError,
    UsageError,
    command,
)
from trt_layermerge.pipeline.files import read_body
from trt_layermerge.pipeline.folder import RunFolder, copy_stages, locked
from trt_layermerge.pipeline.options import STAGES, Reporter, RunOptions

TABLES = STAGES[: STAGES.index("search")]
"""Stages whose files all speed-ups share."""

SPEEDUP, BUDGET = "search.speedup", "search.budget_ms"


def speedups_of(options: RunOptions) -> tuple[float, ...]:
    """Returns the speed-ups that are asked for at once, each once; none where it is a single one.

    Raises:
        UsageError: If one is no factor, or a budget in ms is asked for as well.
    """
    given = options.overrides.get(SPEEDUP)
    if not isinstance(given, (list, tuple)):
        return ()
    if not given or not all(isinstance(one, (int, float)) and one > 1 for one in given):
        raise UsageError(
            f"{list(given)} are no speed-ups; give factors above 1, like --speedup 1.25,1.5,2"
        )
    if options.overrides.get(BUDGET) is not None:
        raise UsageError(
            "several speed-ups and one budget in ms contradict each other; leave out --budget-ms"
        )
    named = {run_name(options, one): float(one) for one in given}
    for name in named:
        replace(options, run=name)  # a name that is too long is refused before anything is done
    if len(named) < len(set(given)):
        raise UsageError(
            f"of {', '.join(map(str, given))} some are the same to six digits, and so would be the "
            "names of their runs; leave one out"
        )
    return tuple(named.values())


def run_name(options: RunOptions, speedup: float) -> str:
    """Returns the name of the run for one of several speed-ups."""
    return f"{options.run}-{speedup:g}x"


def single(options: RunOptions, speedup: float) -> RunOptions:
    """Returns the same request for one of its speed-ups."""
    return replace(options, overrides={**options.overrides, SPEEDUP: speedup})


def each(
    source: RunFolder,
    options: RunOptions,
    work: Callable[[RunOptions], Json],
    reporter: Reporter,
) -> Json:
    """Returns a row for the plan of every speed-up, each in the run ``NAME-1.5x`` and so on.

    A speed-up that is not reached, or a gate that fails, is told in its row, and the others go on.

    Args:
        source: The run that has the tables.
        options: What was asked, with several speed-ups.
        work: Does the rest of one run.
        reporter: Told what is not reached.
    """
    rows = []
    for speedup in speedups_of(options):
        name = run_name(options, speedup)
        folder = RunFolder(options.runs_dir / name)
        with locked(source), locked(folder):
            copy_stages(source, folder, TABLES)
            if (source / "jobs").is_dir():
                shutil.copytree(source / "jobs", folder / "jobs", dirs_exist_ok=True)
        asked = replace(
            single(options, speedup),
            run=name,
            recipe=options.recipe or source / "recipe.yaml",
            from_stage=None if options.from_stage in TABLES else options.from_stage,
        )
        row: Json = {"run": name, "speedup": speedup, "exit_code": 0, "error": None}
        answer: Json = {}
        try:
            answer = work(asked)
        except (AccuracyGateError, LatencyGateError) as error:
            row |= {"exit_code": error.exit_code, "error": str(error)}
            reporter.note(f"{name}: {error}")
            if not isinstance(error, InfeasibleBudgetError):
                answer = read_json(folder / "summary.json", "summary")
        if answer:
            row |= dict(_figures(folder, answer))
        rows.append(row)
    return {"plans": rows}


def _figures(folder: RunFolder, answer: Json) -> Iterator[tuple[str, object]]:
    """Yields what a table tells of a run's plan; ``answer`` is that of its last stage."""
    graph, plan = load_graph(folder / "graph.json"), MergePlan.load(folder / "plan.json")
    original_ms, predicted_ms = plan.notes["original_ms"], plan.latency_ms
    yield "predicted_speedup", original_ms / predicted_ms if predicted_ms else None
    yield "measured_speedup", answer.get("speedup") or plan.notes["measured_speedup"]
    yield "loss", _loss(folder, graph, plan)
    yield "goes", _goes(graph, plan)
    yield "accuracy", (answer.get("merged") or {}).get("accuracy")
    yield "next", command("run", folder.root)


def _loss(folder: RunFolder, graph: LayerGraph, plan: MergePlan) -> float:
    """Returns the loss before training: of the whole network if that was scored, else added up."""
    finalists = read_body(folder / "finalists.json", "finalists")["finalists"]
    joint = next(row["joint_score"] for row in finalists if row["chosen"])
    found = ImportanceTable.load(folder / "importance.jsonl")
    importance = with_counterparts(graph, found, plan.changed)
    parts = sum(importance[candidate].delta for candidate in plan.changed)
    alone = dict(alone_of(found))
    parts += sum(alone[width].delta for width in plan.widths.items())
    return -float(parts if joint is None else joint)


def _goes(graph: LayerGraph, plan: MergePlan) -> Json:
    return {
        "convolutions": [len(graph.convs) - plan.conv_count, len(graph.convs)],
        "activations": [
            graph.activation_count - plan.activation_count,
            graph.activation_count,
        ],
    }
