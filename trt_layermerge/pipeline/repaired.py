"""The relaxed network of a plan, repaired in closed form, and how far it is from the original."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_layermerge.core.plan import MergePlan
from trt_layermerge.pipeline.context import Context, images_of

if TYPE_CHECKING:
    from trt_layermerge.merge import RelaxedNet

BATCH = 128


def repaired(context: Context, plan: MergePlan) -> RelaxedNet:
    """Returns the relaxed network, each block fitted behind the fitted ones before it.

    Every block takes the repair that scored best for it alone.
    """
    import torch

    from trt_layermerge.merge import relax, repair

    network = relax(context.model, context.graph, plan).eval()
    fit, _ = context.calibration
    found = {c.key: context.importance[c].repair for c in plan.changed if c in context.importance}
    methods = {key: name for key, name in found.items() if name is not None}
    repair(network, context.model, torch.split(images_of(fit), BATCH), methods)
    return network


def joint_delta(context: Context, plan: MergePlan) -> float:
    """Returns minus the distance of the whole repaired network's answers from the original's.

    Measured on the images that single candidates are scored on, in the same unit.
    """
    import torch

    from trt_layermerge.importance.distance import Distance

    parts = torch.split(images_of(context.calibration[1]), BATCH)
    network = repaired(context, plan)
    with torch.no_grad():
        distance = Distance.to([context.model(part) for part in parts])
        return -distance.of(network(part) for part in parts)
