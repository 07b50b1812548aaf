"""How well the networks of some plans learn: each is trained a little, as it would be in full.

What a network loses by its repairs alone tells little of what training leaves of that: a block
that is gone is learnt around within steps, a convolution that was fitted into the place of several
lacks what they could compute. The beginning of the training shows it. All run one lap, the best go
on: successive halving (Jamieson and Talwalkar, AISTATS 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import DivergedError
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.objective import published
from trt_layermerge.pipeline.training import training_recipe

if TYPE_CHECKING:
    from torch import nn

BATCH = 128

LAPS, THROUGH = 3, 3
"""Laps of the whole race; how many racers go on after the first. A lap's score is noisy, the
learning rate being high, so the mean over all laps counts."""

SHARE = 20
"""A lap is at most one such part of the training, but at least a step: unless the training is of
a few steps, a race has fewer. Each racer is repaired, or reconstructed, besides."""

LONG = 5
"""Schedules at least so many times as long as the race, that the learning rate stays high."""

WARM_UP = 0.5
"""Laps of warm-up at most."""

JUDGES = 4096
"""Images that judge a lap at most."""


@dataclass(frozen=True)
class Raced:
    """What a plan's network came to in a race.

    Attributes:
        scores: How good it was after each lap; minus infinity where its training diverged.
    """

    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """The mean over the laps."""
        return fmean(self.scores)

    @property
    def merit(self) -> tuple[int, float]:
        """What is higher for the better of two: laps, or -1 where it diverged, then the score."""
        return len(self.scores) if self.score > -math.inf else -1, self.score


def asked(context: Context) -> bool:
    """Whether the recipe says that plans race: those that are trained afterwards.

    Not where removed activations fade out: in the first steps none would be missing yet.
    """
    recipe, chosen = training_recipe(context), context.recipe
    trained = recipe is not None and recipe.epochs > 0
    return trained and chosen.search.race_steps > 0 and not chosen.finetune.anneal


def wanted(context: Context) -> bool:
    """Whether plans race: as ``asked``, but under the paper's protocol the table alone decides."""
    return asked(context) and not published(context)


def race(context: Context, plans: Sequence[MergePlan]) -> list[Raced]:
    """Returns how good each plan's network is in the first steps of its training.

    Each starts as the run's recipe says. A lap has ``search.race_steps`` steps, or fewer where the
    epoch or the training is short, by the recipe's schedule: the learning rate stays high. Accuracy
    on ``val`` tells; without labelled images there, minus the distance of the answers from the
    original's.
    """
    judge, through = judge_of(context), min(THROUGH, len(plans)) if len(plans) > 1 else 0
    scores: list[list[float]] = []
    with TemporaryDirectory() as folder:
        states = [Path(folder) / f"{number}.safetensors" for number in range(len(plans))]

        def run(number: int, laps: int, done: int) -> list[float]:
            context.reporter.progress("racing", done, len(plans) + through)
            return laps_of(context, plans[number], states[number], laps, judge)

        for number in range(len(plans)):
            scores.append(run(number, 1, number))
        order = sorted(range(len(plans)), key=lambda number: -scores[number][0])
        for place, number in enumerate(order[:through]):
            if scores[number][0] > -math.inf:
                more = run(number, LAPS, len(plans) + place)
                scores[number] = [*scores[number], *more][-LAPS:]  # all anew where bits differed
    context.reporter.progress("racing", len(plans) + through, len(plans) + through)
    return [Raced(tuple(found)) for found in scores]


def laps_of(
    context: Context, plan: MergePlan, state: Path, laps: int, judge: Callable[[nn.Module], float]
) -> list[float]:
    """Returns how good a plan's network is after each further lap, until it has run so many.

    Args:
        context: The run.
        plan: What runs.
        state: File of the training, continued where it is there.
        laps: How many in all.
        judge: What tells how good a network is.
    """
    import torch

    from trt_layermerge.data import draw
    from trt_layermerge.finetune.evaluate import NotANumberError
    from trt_layermerge.finetune.loop import finetune
    from trt_layermerge.pipeline.starts import start_network

    recipe = training_recipe(context)
    assert recipe is not None
    warm_up = min(recipe.warmup_epochs, WARM_UP)
    epoch = max(1, len(context.train) // recipe.batch)
    steps = min(context.recipe.search.race_steps, epoch, math.ceil(recipe.epochs * epoch / SHARE))
    epochs = max(recipe.epochs, LONG * LAPS)
    recipe = replace(recipe, epochs=epochs, warmup_epochs=warm_up)
    train = draw(context.train, steps * recipe.batch, context.seed)
    network, _ = start_network(context, plan)
    found: list[float] = []
    try:
        finetune(
            network,
            train,
            None,
            recipe,
            teacher=context.model,
            state_path=state,
            on_epoch=lambda _: found.append(judge(network)),
            device=context.recipe.device,
            stop_after=laps,
        )
    except (DivergedError, NotANumberError):
        found.append(-math.inf)
    finally:  # a training that ends early leaves its teacher as it used it
        context.model.cpu().to(memory_format=torch.contiguous_format)
    return found


def judge_of(context: Context) -> Callable[[nn.Module], float]:
    """Returns what tells how good a network is, wherever it is: higher is better."""
    import torch

    from trt_layermerge.data import batches, draw
    from trt_layermerge.finetune.evaluate import accuracy, evaluating
    from trt_layermerge.importance.distance import Distance

    val = context.data("val")
    judges = draw(val or context.calibration[1], JUDGES, context.seed)
    if val is not None and val.labelled:
        return partial(accuracy, data=judges)
    with torch.no_grad():
        distance = Distance.to([context.model(part) for part, _ in batches(judges, BATCH)])

    def closeness(network: nn.Module) -> float:
        device = next(network.parameters()).device
        with evaluating(network):
            return -distance.of(
                network(part.to(device)).cpu() for part, _ in batches(judges, BATCH)
            )

    return closeness
