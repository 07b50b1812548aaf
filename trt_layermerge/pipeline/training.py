"""How a run trains its network: the recipe, and what changes beside the weights meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trt_layermerge.finetune.recipe import FinetuneRecipe, preset
from trt_layermerge.pipeline.context import Context

if TYPE_CHECKING:
    from trt_layermerge.finetune.loop import EpochRow, FinetuneResult
    from trt_layermerge.finetune.processes import ProcessGroup
    from trt_layermerge.merge import RelaxedNet


def training_recipe(context: Context) -> FinetuneRecipe | None:
    """Returns how to train, or None for no training.

    Where the images have no labels, the original network alone teaches unless the recipe says what
    share it has.
    """
    section = context.recipe.finetune
    if section.preset == "none":
        return None
    values = {**preset(section.preset).to_json(), "seed": context.seed}
    if not context.train.labelled:
        values["distill_weight"] = 1.0
    return FinetuneRecipe.from_json({**values, **section.options})


def train(
    context: Context,
    network: RelaxedNet,
    recipe: FinetuneRecipe,
    state_path: Path,
    *,
    identity: str = "",
    on_epoch: Callable[[EpochRow], None] | None = None,
    group: ProcessGroup | None = None,
) -> FinetuneResult:
    """Returns the history of a training in place, taught by the original network.

    Arguments and errors are those of ``finetune.loop.finetune``.
    """
    from trt_layermerge.finetune.loop import finetune

    return finetune(
        network,
        context.train,
        context.data("val"),
        recipe,
        teacher=context.model,
        schedule=schedule_of(context, network),
        state_path=state_path,
        identity=identity,
        on_epoch=on_epoch,
        device=context.recipe.device,
        group=group,
    )


def schedule_of(context: Context, network: RelaxedNet) -> Callable[[float], None] | None:
    """Returns what fades the activations that the run's recipe anneals; None where none are."""
    from trt_layermerge.merge import hold_activations, set_linearity

    over = context.recipe.finetune.anneal
    held = hold_activations(network) if over else ()
    if over and not held:
        context.reporter.note("nothing is annealed: the plan keeps no two convolutions of a block")
    return partial(set_linearity, held, over=over) if held else None
