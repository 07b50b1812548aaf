"""How a run trains its network: the recipe, and what changes beside the weights meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trt_layermerge.finetune.recipe import FinetuneRecipe, preset
from trt_layermerge.pipeline.context import Context

if TYPE_CHECKING:
    from torch import nn

    from trt_layermerge.finetune.loop import EpochRow, FinetuneResult
    from trt_layermerge.finetune.ranks import Ranks
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
    ranks: Ranks | None = None,
) -> FinetuneResult:
    """Returns the history of a training in place, taught by the original network.

    Arguments and errors are those of ``finetune.loop.finetune``.
    """
    from trt_layermerge.finetune.loop import finetune

    views, schedule = aids(context, network, recipe)
    return finetune(
        network,
        context.train,
        context.data("val"),
        recipe,
        teacher=context.model,
        views=views,
        schedule=schedule,
        state_path=state_path,
        identity=identity,
        on_epoch=on_epoch,
        device=context.recipe.device,
        ranks=ranks,
    )


def aids(
    context: Context, network: RelaxedNet, recipe: FinetuneRecipe
) -> tuple[tuple[nn.Module, nn.Module] | None, Callable[[float], None] | None]:
    """Returns ``views`` and ``schedule`` of the training that the run's recipe describes."""
    from trt_layermerge.merge import hold_activations, matched, set_linearity

    over = context.recipe.finetune.anneal
    held = hold_activations(network) if over else ()
    if over and not held:
        context.reporter.note("nothing is annealed: the plan keeps no two convolutions of a block")
    views = matched(network, context.model) if recipe.feature_weight > 0 else None
    return views, partial(set_linearity, held, over=over) if held else None
