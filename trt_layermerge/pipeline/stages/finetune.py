"""``finetune``: the plan → ``repaired.safetensors``, then trained, ``relaxed.safetensors``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_layermerge.core.jsonio import Json, read_lines, sha256_json, write_bytes, write_lines
from trt_layermerge.finetune.recipe import DEVIATIONS, FinetuneRecipe
from trt_layermerge.pipeline.context import Context, data_inputs
from trt_layermerge.pipeline.models import network_inputs
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.pipeline.starts import start_network
from trt_layermerge.pipeline.training import train, training_recipe

if TYPE_CHECKING:
    from torch import nn

    from trt_layermerge.finetune.loop import EpochRow
    from trt_layermerge.finetune.processes import ProcessGroup

STATE = "finetune.state.safetensors"


def _settings(context: Context) -> Json:
    data = context.recipe.data
    return {
        "model": network_inputs(context.recipe.model),
        "finetune": context.recipe.finetune.model_dump(mode="json"),
        "images": context.recipe.importance.fit_images,
        "train": data_inputs(data.train),
        "val": data_inputs(data.val),
        "preprocess": data.preprocess.model_dump(mode="json"),
        "seed": context.seed,
    }


def _run(context: Context) -> tuple[str, ...]:
    from trt_layermerge.finetune.evaluate import known_accuracy

    recipe, section = training_recipe(context), context.recipe.finetune
    _note_what_to_expect(context, recipe)
    network, reconstruction = start_network(context, context.plan)
    save_weights(network, context, "repaired.safetensors")
    val = context.data("val")
    start = known_accuracy(network, val)
    rows: list[Json] = []
    if recipe is not None:

        def tell(row: EpochRow) -> None:
            context.reporter.progress("fine-tuning", row.epoch, recipe.epochs)

        result = train(
            context,
            network,
            recipe,
            context.folder / STATE,
            identity=sha256_json(_settings(context)),
            on_epoch=tell,
            group=context.together.call() if context.together else None,
        )
        rows = [row.to_json() for row in result.history]
        network.cpu().eval()
        context.model.cpu()
    save_weights(network, context, "relaxed.safetensors")
    header = {
        "start": section.start,
        "start_val_accuracy": start,
        "original_val_accuracy": known_accuracy(context.model, val),
        "reconstruction": reconstruction,
        "recipe": recipe.to_json() if recipe else None,
    }
    write_lines(context.folder / "finetune.jsonl", "finetune", header, rows)
    return "repaired.safetensors", "relaxed.safetensors", "finetune.jsonl"


def _note_what_to_expect(context: Context, recipe: FinetuneRecipe | None) -> None:
    section, note = context.recipe.finetune, context.reporter.note
    if recipe is None and section.start == "original" and not section.reconstruct.steps:
        note("neither repaired nor trained: expect a poor network")
    if recipe is not None and section.preset in DEVIATIONS:
        note(f"{section.preset}: {DEVIATIONS[section.preset]}")
    if not context.train.labelled:
        note("the training images have no labels: everything is learnt from the original network")
    val = context.data("val")
    if val is None or not val.labelled:
        note("no accuracy is reported before verify: there are no labelled images to choose by")


def assist(context: Context, group: ProcessGroup) -> None:
    """Trains with the process that does this stage, and has begun to train."""
    recipe = training_recipe(context)
    if recipe is not None:
        # the first process reads the state for all
        train(context, context.relaxed(None), recipe, context.folder / STATE, group=group)


def save_weights(network: nn.Module, context: Context, name: str) -> None:
    """Writes the tensors of a network as safetensors, whole or not at all."""
    from safetensors.torch import save

    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    write_bytes(context.folder / name, save(tensors))


def _result(context: Context) -> Json:
    header, rows = read_lines(context.folder / "finetune.jsonl", "finetune")
    return {
        "original_val_accuracy": header["original_val_accuracy"],
        "start": header["start"],
        "start_val_accuracy": header["start_val_accuracy"],
        "reconstruction": header["reconstruction"],
        "epochs": len(rows),
        "val_accuracy": rows[-1]["val_accuracy"] if rows else header["start_val_accuracy"],
    }


STAGE = Stage("finetune", ("graph.json", "plan.json", "importance.jsonl"), _settings, _run, _result)
