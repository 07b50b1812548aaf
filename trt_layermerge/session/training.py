"""How a session trains a plan's network, in full or for some rungs of a race."""

from __future__ import annotations

import math
from collections.abc import Callable, Sized
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.inputs import parts_of
from trt_layermerge.core.outputs import Kind
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.data import LabelledData, Part, batches, draw
from trt_layermerge.data.loader import Images, batch_of
from trt_layermerge.errors import DivergedError
from trt_layermerge.finetune import loop
from trt_layermerge.finetune.evaluate import (
    NotANumberError,
    accuracy,
    known_accuracy,
    outputs_of,
)
from trt_layermerge.finetune.recipe import FinetuneRecipe, preset
from trt_layermerge.importance.distance import Distance
from trt_layermerge.kinds import FAMILIES
from trt_layermerge.merge import RelaxedNet, hold_activations, set_linearity
from trt_layermerge.search.joint import RACERS
from trt_layermerge.search.race import RUNGS, THROUGH
from trt_layermerge.session.effort import race_steps
from trt_layermerge.session.images import FirstBatches, in_memory
from trt_layermerge.session.settings import FinetuneSection, Settings
from trt_layermerge.session.starts import Starts

if TYPE_CHECKING:
    from trt_layermerge.finetune.processes import ProcessGroup

Metric: TypeAlias = Callable[[nn.Module], float]
"""How good a network is; higher is better."""

BATCH = 128

SHARE = 20
"""A rung is at most one such part of the training, but at least a step: unless the training is of
a few steps, a race has fewer. Each racer is repaired, or reconstructed, besides."""

LONG = 5
"""Schedules at least so many times as long as the race, that the learning rate stays high."""

MOST_RUNGS = len(FAMILIES) * RACERS + THROUGH * (RUNGS - 1)
"""Rungs that all racers climb together at most."""

WARM_UP = 0.5
"""Rungs of warm-up at most."""

WORSE = 1.01
"""How much farther from the original's answers a training without labels takes a network that it
harms."""

UNLABELLED = 256
"""Images at most by whose answers a training without labels is judged."""

JUDGES = 4096
"""Images that judge a rung at most."""


def first_labels(images: Images) -> Tensor | None:
    """Returns the labels of a set's first image or a loader's first batch, or None without."""
    if isinstance(images, LabelledData):
        return images.batch(torch.arange(1))[1] if images.labelled else None
    first = next(iter(images), None)
    return None if first is None else batch_of(first)[1]


def training_recipe(section: FinetuneSection, seed: int, has_labels: bool) -> FinetuneRecipe | None:
    """Returns how to train, or None for no training.

    Where the images have no labels, the original network alone teaches unless the recipe says what
    share it has.

    Args:
        section: Preset and what replaces its values.
        seed: Of the training.
        has_labels: Whether the training images have labels.
    """
    if section.preset == "none":
        return None
    values = {**preset(section.preset).to_json(), "seed": seed}
    if not has_labels:
        values["distill_weight"] = 1.0
    return FinetuneRecipe.from_json({**values, **section.options})


def races(settings: Settings, recipe: FinetuneRecipe | None) -> bool:
    """Whether the settings say that plans race: those that are trained afterwards.

    Not where removed activations fade out: in the first steps none would be missing yet.
    """
    trained = recipe is not None and recipe.epochs > 0
    return trained and settings.search.race_steps > 0 and not settings.finetune.anneal


@dataclass(frozen=True)
class Teaching:
    """What a plan's network is trained with.

    Attributes:
        model: The original network, which teaches.
        train: Images to train on.
        val: Images to judge by, or None.
        metric: How good a network is, in place of its accuracy on ``val``; None for that.
        settings: How to train.
        tell: What is called meanwhile.
        kinds: What each output is (``core.outputs``); None for what their shapes tell.
        judged: Whether labels of the images tell the classes of an output; without, the original
            network alone teaches.
    """

    model: nn.Module
    train: Images
    val: Images | None
    metric: Metric | None
    settings: Settings
    tell: Callbacks
    kinds: tuple[Kind, ...] | None = None
    judged: bool = True

    @property
    def recipe(self) -> FinetuneRecipe | None:
        """How to train, or None for no training."""
        return training_recipe(self.settings.finetune, self.settings.seed, self.judged)

    def __call__(
        self,
        network: RelaxedNet,
        recipe: FinetuneRecipe,
        state_path: Path,
        *,
        identity: str = "",
        group: ProcessGroup | None = None,
    ) -> loop.FinetuneResult:
        """Returns the history of a training in place; the state's file continues an earlier one.

        Args:
            network: What is trained, as ``Starts`` made it.
            recipe: How.
            state_path: File of the unfinished training.
            identity: Tells images and teacher from others.
            group: The processes that train together; None for this one alone.

        Raises:
            UsageError: If labels are needed and there are none.
            DivergedError: If the loss is no longer finite.
        """
        closeness = None if self.judged or self.metric or group else self._closeness()
        before = closeness(network) if closeness else 0.0
        result = loop.finetune(
            network,
            self.train,
            self.val,
            recipe,
            teacher=self.model,
            schedule=self._schedule(network, recipe.epochs),
            on_epoch=lambda row: self.tell.progress("fine-tuning", row.epoch, recipe.epochs),
            state_path=state_path,
            identity=identity,
            device=self.settings.device,
            group=group,
            metric=self.metric,
            kinds=self.kinds,
        )
        network.cpu().eval()
        self.model.cpu()
        if closeness and (after := closeness(network)) < WORSE * before:
            self.tell.note(
                "training took the network's answers further from the original's, from "
                f"{-before:.3g} to {-after:.3g}: lower finetune.options.lr, give more images, or "
                "leave training out (finetune.preset: none)"
            )
        return result

    def _closeness(self) -> Metric:
        """Returns what judges a training where no label does, on images to judge by if any."""
        judges = in_memory(self.train if self.val is None else self.val, UNLABELLED)
        return closeness_to(self.model, draw(judges, UNLABELLED, self.settings.seed), self.kinds)

    def _schedule(self, network: RelaxedNet, epochs: int) -> Callable[[float], None]:
        """Returns what is told the share of the training that is done: it shows the progress.

        A whole epoch is shown by who writes its state: what is shown as done is never lost.
        Removed activations fade out by it, where the settings say so.
        """
        over = self.settings.finetune.anneal
        held = hold_activations(network) if over else ()
        if over and not held:
            self.tell.note("nothing is annealed: the plan keeps no two convolutions of a block")

        def follow(share: float) -> None:
            done = share * epochs
            if not math.isclose(done, round(done), abs_tol=1e-6):  # whole epochs once on the disk
                self.tell.progress("fine-tuning", int(done), epochs)
            if held:
                set_linearity(held, share, over)

        return follow


def closeness_to(model: nn.Module, images: LabelledData, kinds: tuple[Kind, ...] | None) -> Metric:
    """Returns what tells minus the distance of a network's answers from the original's.

    Args:
        model: The original network, on the CPU, in eval mode.
        images: What both answer.
        kinds: What each output is (``core.outputs``); None for what their shapes tell.
    """
    with torch.no_grad():
        answers = [model(*parts_of(part)) for part, _ in batches(images, BATCH)]
    distance = Distance.to(answers, kinds)

    def closeness(network: nn.Module) -> float:
        return -distance.of(outputs_of(network, part) for part, _ in batches(images, BATCH))

    return closeness


@dataclass(frozen=True)
class Racers:
    """Trains plans' networks rung by rung, each as its whole training would begin.

    Attributes:
        starts: Makes the networks.
        teaching: What they are trained with.
        judges: Images that tell how good a network is where there is no metric.
        folder: Where unfinished trainings are kept.
        macs: Multiply-accumulates of the original for one image.
    """

    starts: Starts
    teaching: Teaching
    judges: LabelledData
    folder: Path
    macs: float

    @cached_property
    def steps(self) -> int:
        """Steps of a rung; 0 where plans do not race, for they are not trained or it takes long.

        They are ``search.race_steps``, or fewer where the epoch or the training is short, or the
        network large.
        """
        recipe, settings = self.teaching.recipe, self.starts.settings
        if recipe is None or not races(settings, recipe):
            return 0
        train = self.teaching.train
        size = len(train) if isinstance(train, Sized) else settings.search.race_steps
        epoch = max(1, size // recipe.batch if isinstance(train, LabelledData) else size)
        wanted = min(settings.search.race_steps, epoch, math.ceil(recipe.epochs * epoch / SHARE))
        affordable = race_steps(self.macs, recipe.batch, MOST_RUNGS, settings)
        if not affordable:
            self.teaching.tell.note(
                "plans are not trained a little to see which learns best: that takes long with a "
                "network of this size (importance.effort: thorough does it all the same)"
            )
        return min(wanted, affordable)

    def climb(self, plan: MergePlan, racer: int, rungs: int) -> list[float]:
        """Returns how good a plan's network is after each further rung (``Evaluator.climb``).

        A rung has ``steps``, by the schedule of the whole training: the learning rate stays high.
        """
        recipe, settings = self.teaching.recipe, self.starts.settings
        assert recipe is not None
        train, short = self._rung(recipe)
        network, _ = self.starts.start(plan)
        found: list[float] = []
        try:
            loop.finetune(
                network,
                train,
                None,
                short,
                teacher=self.starts.model,
                state_path=self.folder / f"{racer}.safetensors",
                on_epoch=lambda _: found.append(self.judge(network)),
                device=settings.device,
                stop_after=rungs,
                kinds=self.teaching.kinds,
            )
        except (DivergedError, NotANumberError):
            found.append(-math.inf)
        finally:  # a training that ends early leaves its teacher as it used it
            self.starts.model.cpu().to(memory_format=torch.contiguous_format)
        return found

    def _rung(self, recipe: FinetuneRecipe) -> tuple[Images, FinetuneRecipe]:
        """Returns the images of a rung, and the recipe by which it is one epoch."""
        train, settings, steps = self.teaching.train, self.starts.settings, self.steps
        short = replace(
            recipe,
            epochs=max(recipe.epochs, LONG * RUNGS),
            warmup_epochs=min(recipe.warmup_epochs, WARM_UP),
        )
        if isinstance(train, LabelledData):
            return draw(train, steps * recipe.batch, settings.seed), short
        return FirstBatches(train, steps), short

    @cached_property
    def judge(self) -> Metric:
        """What tells how good a network is, wherever it is: higher is better.

        Accuracy on ``val``; without labelled images there, minus the distance of the answers from
        the original's.
        """
        if self.teaching.metric is not None:
            return self.teaching.metric
        judges = draw(self.judges, JUDGES, self.starts.settings.seed)
        kinds, model = self.teaching.kinds, self.starts.model
        first = Part(judges, torch.arange(1))
        if self.teaching.val is not None and known_accuracy(model, first, kinds=kinds) is not None:
            return partial(accuracy, data=judges, kinds=kinds)
        return closeness_to(model, judges, kinds)
