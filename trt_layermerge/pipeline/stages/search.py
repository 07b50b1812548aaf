"""``search``: tables and a budget → ``frontier.json``, ``finalists.json`` and ``plan.json``."""

from __future__ import annotations

from trt_layermerge.core.jsonio import Json, read_json
from trt_layermerge.pipeline.data_files import data_inputs, metric_inputs
from trt_layermerge.pipeline.files import read_body
from trt_layermerge.pipeline.folder import outdated, unfinished
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.pipeline.versions import versions
from trt_layermerge.session.meters import source_of
from trt_layermerge.session.training import races, training_recipe

OUTPUTS = ("frontier.json", "finalists.json", "plan.json")


def _settings(run: Run) -> Json:
    recipe = run.recipe
    return {
        "search": recipe.search.model_dump(mode="json", exclude={"rules", "kinds", "limits"}),
        "seed": run.seed,
        "task": recipe.task,
    }


def _here(run: Run) -> Json:
    recipe, found = run.recipe, {}
    training = training_recipe(recipe.finetune, run.seed, run.train.labelled)
    # How the plans race is left out, so that what was chosen can be trained in other ways too.
    if races(recipe, training):
        judges = data_inputs(recipe.data.val, recipe.data.classes)
        found = {"judges": judges, **metric_inputs(recipe.data.metric)}
    if recipe.measure.recorded:
        found |= source_of(recipe.measure, run.folder.root, run.session.meter)
    return found


def _run(run: Run) -> tuple[str, ...]:
    # What a finished search on the same tables left belongs together and to later stages.
    run.session.keep_frontier = not (
        unfinished(run.folder, OUTPUTS[:1]) or outdated(run.folder, OUTPUTS[:1])
    )
    notes = {
        "versions": versions(),
        "tables": run.folder.hashes(("latency.jsonl", "importance.jsonl")),
    }
    val = run.data("val")
    run.session.search(run.train, val=val, metric=run.judge(val), notes=notes)
    return OUTPUTS


def _result(run: Run) -> Json:
    body = read_json(run.folder / "plan.json", "plan")
    points = read_body(run.folder / "frontier.json", "frontier")["points"]
    return {**body, **body["notes"], "frontier_points": len(points)}


INPUTS = (
    "graph.json",
    "candidates.jsonl",
    "latency_bare.jsonl",
    "networks.jsonl",
    "latency.jsonl",
    "importance.jsonl",
)
STAGE = Stage("search", INPUTS, _settings, _run, _result, here=_here)
