"""``finetune``: the plan → ``repaired.safetensors``, then trained, ``relaxed.safetensors``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_layermerge.core.jsonio import Json, sha256_json, write_lines
from trt_layermerge.finetune.recipe import DEVIATIONS, FinetuneRecipe
from trt_layermerge.pipeline.data_files import data_inputs, metric_inputs
from trt_layermerge.pipeline.files import read_history
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.stage import Stage

if TYPE_CHECKING:
    from trt_layermerge.finetune.processes import ProcessGroup

OUTPUTS = ("repaired.safetensors", "relaxed.safetensors", "finetune.jsonl")


def _settings(run: Run) -> Json:
    data = run.recipe.data
    return {
        "model": run.recipe.model.identity(),
        "finetune": run.recipe.finetune.model_dump(mode="json"),
        "images": run.recipe.importance.fit_images,
        "train": data_inputs(data.train, data.classes),
        "val": data_inputs(data.val, data.classes),
        **metric_inputs(data.metric),
        "preprocess": run.preprocessing,
        "seed": run.seed,
        "task": run.recipe.task,
    }


def _run(run: Run) -> tuple[str, ...]:
    session, section, val = run.session, run.recipe.finetune, run.data("val")
    teaching = session.teaching(run.train, val)
    _note_what_to_expect(run, teaching.recipe)
    network = session.relax()
    reconstruction = session.repair(run.train)
    session.save("repaired.safetensors")
    start, judge = session.quality(network, val), run.judge(val)
    judged = judge and {"original": judge(session.model), "start": judge(network)}
    rows: list[Json] = []
    if teaching.recipe is not None:
        result = session.teach(
            teaching,
            identity=sha256_json(_settings(run)),
            group=run.launched.call() if run.launched else None,
        )
        rows = [row.to_json() for row in result.history]
    session.save("relaxed.safetensors")
    if judge and judged:
        judged["trained"] = judge(network)
    header = {
        "start": section.start,
        "start_val_accuracy": start,
        "original_val_accuracy": session.quality(session.model, val),
        "val_metric": judged,
        "reconstruction": reconstruction,
        "recipe": teaching.recipe.to_json() if teaching.recipe else None,
    }
    write_lines(run.folder / "finetune.jsonl", "finetune", header, rows)
    return OUTPUTS


def _note_what_to_expect(run: Run, recipe: FinetuneRecipe | None) -> None:
    section, note = run.recipe.finetune, run.reporter.note
    if recipe is None and section.start == "original" and not section.reconstruct.steps:
        note("neither repaired nor trained: expect a poor network")
    if recipe is not None and section.preset in DEVIATIONS:
        note(f"{section.preset}: {DEVIATIONS[section.preset]}")
    if not run.session.judged(run.train):
        why = "labels that no output tells" if run.train.labelled else "no labels"
        note(f"the training images have {why}: everything is learnt from the original network")
    val = run.data("val")
    if val is None or not val.labelled:
        note("no accuracy is reported before verify: there are no labelled images to choose by")


def train_with(run: Run, group: ProcessGroup) -> None:
    """Trains with the process that does this stage, and has begun to train."""
    teaching = run.session.teaching(run.train, run.data("val"))
    if teaching.recipe is not None:
        # the first process reads the state for all
        run.session.unfilled()
        run.session.teach(teaching, group=group)


def _result(run: Run) -> Json:
    header = read_history(run.folder / "finetune.jsonl")
    rows = header["rows"]
    return {
        "original_val_accuracy": header["original_val_accuracy"],
        "start": header["start"],
        "start_val_accuracy": header["start_val_accuracy"],
        "reconstruction": header["reconstruction"],
        "epochs": len(rows),
        "val_accuracy": rows[-1]["val_accuracy"] if rows else header["start_val_accuracy"],
        "val_metric": header["val_metric"],
    }


STAGE = Stage("finetune", ("graph.json", "plan.json", "importance.jsonl"), _settings, _run, _result)
