"""The network as fine-tuning finds it."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import DivergedError
from trt_layermerge.pipeline.context import Context, images_of
from trt_layermerge.pipeline.repaired import BATCH, repaired

if TYPE_CHECKING:
    from trt_layermerge.merge import RelaxedNet

HELD_OUT = 256
"""Images at most on which a reconstruction must be better than its start."""


def start_network(context: Context, plan: MergePlan) -> tuple[RelaxedNet, Json | None]:
    """Returns a plan's network before the training, and what reconstruction came to."""
    import torch

    from trt_layermerge.merge import collapse_early

    section = context.recipe.finetune
    network = repaired(context, plan) if section.start == "repair" else bare(context, plan)
    told = reconstructed(context, network) if section.reconstruct.steps else None
    if section.collapsed:
        collapse_early(network, torch.split(images_of(context.calibration[0]), BATCH))
    return network, told


def bare(context: Context, plan: MergePlan) -> RelaxedNet:
    """Returns a plan's network with the original weights, all blocks unmerged."""
    from trt_layermerge.merge import relax

    return relax(context.model, context.graph, plan).eval()


def unfilled(context: Context, plan: MergePlan) -> RelaxedNet:
    """Returns a plan's network as it is trained, for weights to be filled in."""
    from trt_layermerge.merge import collapse_early

    network = bare(context, plan)
    if context.recipe.finetune.collapsed:
        collapse_early(network, None)
    return network


def reconstructed(context: Context, network: RelaxedNet) -> Json:
    """Returns errors before and after a reconstruction in place; it is undone if it did not help.

    Errors are the mean over output and changed blocks' ends, on training images held out from it.
    """
    from trt_layermerge.data import draw, split
    from trt_layermerge.merge import Reconstruction, match_error, reconstruct

    section, device = context.recipe.finetune.reconstruct, context.recipe.device
    drawn = draw(context.train, section.images, context.seed)
    held, used = (
        images_of(part) for part in split(drawn, min(HELD_OUT, len(drawn) // 4 or 1), context.seed)
    )
    how = Reconstruction(section.steps, section.lr, section.batch, section.scope, context.seed)
    network.to(device), context.model.to(device)
    start = copy.deepcopy(network.state_dict())
    before = match_error(network, context.model, held)

    def tell(done: int, total: int) -> None:
        context.reporter.progress("reconstructing", done, total)

    try:
        reconstruct(network, context.model, used, how, tell)
        after = match_error(network, context.model, held)
    except DivergedError:
        after = math.inf
    if not after < before:
        network.load_state_dict(start)
        context.reporter.note(
            f"reconstruction was undone: on held-out images its error went from {before:.3f} to "
            f"{after:.3f}; lower finetune.reconstruct.lr"
        )
    network.cpu(), context.model.cpu()
    return {
        "images": len(used),
        "error_before": before,
        "error_after": after if math.isfinite(after) else None,
        "kept": after < before,
    }
