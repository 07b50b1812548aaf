"""How well the networks of some plans learn: each is trained a little, as it would be in full.

What a network loses by its repairs alone tells little of what training leaves of that: a block
that is gone is learnt around within steps, a convolution that was fitted into the place of several
lacks what they could compute. The beginning of the training shows it (successive halving with one
rung; Jamieson and Talwalkar, AISTATS 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import DivergedError
from trt_layermerge.pipeline.context import Context, images_of
from trt_layermerge.pipeline.objective import published
from trt_layermerge.pipeline.training import training_recipe

if TYPE_CHECKING:
    from torch import nn

BATCH = 128


def wanted(context: Context) -> bool:
    """Whether plans are to race: where they are trained afterwards, and the recipe says so.

    Under the paper's protocol the table alone decides.
    """
    asked = context.recipe.search.race_steps > 0 and not published(context)
    return asked and training_recipe(context) is not None


def race(context: Context, plans: Sequence[MergePlan]) -> list[float]:
    """Returns how good each plan's network is after the first steps of its training.

    Each starts as the run's recipe says and is trained for ``search.race_steps`` steps, or an epoch
    where that is shorter, by the recipe's schedule, at whose end the learning rate is still high.
    Accuracy on ``val`` tells; without labelled images there, minus the distance of the answers from
    the original's. Minus infinity where a training diverged.
    """
    import torch

    from trt_layermerge.finetune.data import draw
    from trt_layermerge.finetune.evaluate import NotANumberError
    from trt_layermerge.finetune.loop import finetune
    from trt_layermerge.pipeline.starts import start_network

    recipe = training_recipe(context)
    assert recipe is not None
    recipe = replace(recipe, feature_weight=0.0)
    train = draw(context.train, context.recipe.search.race_steps * recipe.batch, context.seed)
    judge = judge_of(context)
    found = []
    for count, plan in enumerate(plans):
        context.reporter.progress("racing", count, len(plans))
        network, _ = start_network(context, plan)
        try:
            finetune(
                network,
                train,
                None,
                recipe,
                teacher=context.model,
                device=context.recipe.device,
                stop_after=1,
            )
            found.append(judge(network.cpu().eval()))
        except (DivergedError, NotANumberError):
            found.append(-math.inf)
        finally:  # a training that ends early leaves its teacher as it used it
            context.model.cpu().to(memory_format=torch.contiguous_format)
    context.reporter.progress("racing", len(plans), len(plans))
    return found


def judge_of(context: Context) -> Callable[[nn.Module], float]:
    """Returns what tells how good a network is: higher is better."""
    import torch

    from trt_layermerge.finetune.evaluate import accuracy
    from trt_layermerge.importance.distance import Distance

    val = context.data("val")
    if val is not None and val.labelled:
        return partial(accuracy, data=val)
    parts = torch.split(images_of(val or context.calibration[1]), BATCH)
    with torch.no_grad():
        distance = Distance.to([context.model(part) for part in parts])

    def closeness(network: nn.Module) -> float:
        with torch.no_grad():
            return -distance.of(network(part) for part in parts)

    return closeness
