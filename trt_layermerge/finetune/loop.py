"""Trains a relaxed network, in steps that resume bit for bit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from trt_layermerge.core.jsonio import damage
from trt_layermerge.errors import DivergedError, UsageError
from trt_layermerge.finetune.augment import parse_augment
from trt_layermerge.finetune.data import LabelledData, batches, preprocess_of
from trt_layermerge.finetune.device import device_named, layout_of
from trt_layermerge.finetune.evaluate import NotANumberError, accuracy, check_labels
from trt_layermerge.finetune.losses import checked, taught, training_loss
from trt_layermerge.finetune.norms import batch_norms, reestimate
from trt_layermerge.finetune.optimiser import make_optimiser, optimiser_tensors, restore_optimiser
from trt_layermerge.finetune.ranks import (
    Alone,
    Ranks,
    floating,
    own_augment,
    part_of_batches,
    part_of_images,
)
from trt_layermerge.finetune.recipe import FinetuneRecipe, learning_rate
from trt_layermerge.finetune.state import (
    Tensors,
    TrainState,
    fingerprint,
    load_state,
    save_state,
)

log = logging.getLogger(__name__)

Schedule: TypeAlias = Callable[[float], None]
"""Told the share of the training that is done, before every step and after every epoch."""

Views: TypeAlias = tuple[nn.Module, nn.Module]
"""Student and teacher, each returning its logits followed by values within it, as a tuple."""


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One epoch: mean training loss, accuracy on ``val`` as a fraction, time spent."""

    epoch: int
    loss: float
    val_accuracy: float | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Returns a line of ``finetune.jsonl``."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What a training came to.

    Attributes:
        history: One row an epoch, those of an earlier, interrupted call included.
        val_accuracy: Of the weights left in the network, or None without ``val``.
        resumed_epochs: Epochs that an earlier call had already done.
    """

    history: tuple[EpochRow, ...]
    val_accuracy: float | None
    resumed_epochs: int


def finetune(
    student: nn.Module,
    train: LabelledData,
    val: LabelledData | None,
    recipe: FinetuneRecipe,
    *,
    teacher: nn.Module | None = None,
    views: Views | None = None,
    schedule: Schedule | None = None,
    state_path: Path | None = None,
    identity: str = "",
    on_epoch: Callable[[EpochRow], None] | None = None,
    device: str = "cpu",
    ranks: Ranks | None = None,
    stop_after: int | None = None,
    metric: Any = None,
) -> FinetuneResult:
    """Returns the history of a training; ``student`` is trained in place, on ``device``.

    The last epoch's weights are kept (or their running mean, ``ema_decay``): ``val`` is only
    reported, nothing is selected by it. With ``state_path``, the state is written after every
    epoch; the same call with the same start continues from it, and ends, on a CPU with the same
    number of threads, with the very same bits. The state of another start, recipe or
    ``identity`` is renamed.

    Args:
        student: The network at its start.
        train: Images to train on.
        val: Images to report the accuracy of, or None; nothing is reported without labels.
        recipe: How to train.
        teacher: The original network, needed where the recipe distils; moved to ``device``.
        views: What ``feature_weight`` compares; the first shares its modules with ``student``.
        schedule: What else changes in the course of the training, such as activations that are
            annealed; at 1 it must leave the network as it is to be kept.
        state_path: File of the unfinished training.
        identity: What tells these images and this teacher from others, such as a hash of their
            files: a training on others is not continued.
        on_epoch: Called after every epoch, when its state is on the disk.
        device: Name of a torch device.
        ranks: The processes that train together, each calling this with the same arguments and
            computing where its ``device`` says; None for this one alone. Only the first one reads
            and writes the state. A training may be continued by another number of processes.
        stop_after: Epochs after which it ends early, at a learning rate that is still high.

    Raises:
        UsageError: If the recipe distils without a teacher, compares values without ``views`` or
            needs labels where there are none, or a batch has fewer images than there are processes.
        DivergedError: If the loss is no longer finite.
        CorruptInputError: If the state is damaged, a label is beyond the network's classes, or
            the first loss is not finite.
        DeviceError: If the state cannot be written, or the device is not there.
    """
    _check(recipe, train, teacher, views)
    ranks = ranks or Alone(device_named(device))
    answering = (student, teacher)
    if views is not None and recipe.feature_weight > 0:
        answering = views
    training = _Training(student, train, val, recipe, answering, ranks, identity, schedule)
    done = training.resume(state_path) if state_path else 0
    last = recipe.epochs if stop_after is None else min(stop_after, recipe.epochs)
    for epoch in range(done, last):
        row = training.epoch(epoch)
        if state_path and ranks.index == 0:
            training.save(state_path)
        if on_epoch:
            on_epoch(row)
    training.finish()
    rows = tuple(training.history)
    final = rows[-1].val_accuracy if rows and recipe.bn != "reestimate" else training.judge()
    return FinetuneResult(rows, final, done)


def _check(
    recipe: FinetuneRecipe, train: LabelledData, teacher: nn.Module | None, views: Views | None
) -> None:
    """Refuses what a recipe needs and does not get. Raises ``UsageError``."""
    if recipe.distill_weight > 0 and teacher is None:
        raise UsageError(
            f"the recipe distils with weight {recipe.distill_weight:g}, but no teacher is given; "
            "give the original network, or set distill_weight to 0"
        )
    if recipe.feature_weight > 0 and views is None:
        raise UsageError(
            "the recipe compares values within the networks (feature_weight), but they are not "
            "given (views); set feature_weight to 0"
        )
    check_teaching(recipe, train)


def check_teaching(recipe: FinetuneRecipe, train: LabelledData) -> None:
    """Refuses to learn from labels where there are none. Raises ``UsageError``."""
    if recipe.distill_weight < 1 and not train.labelled:
        raise UsageError(
            "the training images have no labels, so only the original network can teach; set "
            "finetune.options.distill_weight to 1, or give images with labels"
        )


class _Training:
    """Network, optimiser and history of one training under way."""

    def __init__(
        self,
        student: nn.Module,
        train: LabelledData,
        val: LabelledData | None,
        recipe: FinetuneRecipe,
        answering: tuple[nn.Module, nn.Module | None],
        ranks: Ranks,
        identity: str,
        schedule: Schedule | None,
    ) -> None:
        device, (mine, teacher) = ranks.device, answering
        self.run = fingerprint(student, recipe, len(train), teacher is not None, identity)
        self.layout = layout_of(device)
        self.student = student.to(device).to(memory_format=self.layout)
        self.train, self.val = train, val
        self.network = ranks.wrap(mine.to(device))
        listens = recipe.distill_weight > 0 or recipe.feature_weight > 0
        self.teacher = None
        if teacher and listens:
            self.teacher = teacher.to(device).to(memory_format=self.layout)
        self.schedule = schedule
        self.recipe, self.device, self.ranks = recipe, device, ranks
        self.batch = min(recipe.batch, len(train))
        if self.batch < ranks.count:
            raise UsageError(
                f"{ranks.count} processes cannot share batches of {self.batch} images; start fewer"
            )
        self.steps = len(train) // self.batch
        self.augment = own_augment(parse_augment(recipe.augment, preprocess_of(train)), ranks)
        self.optimiser = make_optimiser(student, recipe)
        self.mean: Tensors = {}
        if recipe.ema_decay is not None:
            self.mean = {n: v.detach().clone() for n, v in _floating(student)}
        self.history: list[EpochRow] = []

    def resume(self, path: Path) -> int:
        """Continues from a state; returns the number of epochs it had done."""
        state = self.ranks.share(load_state(path, self.run) if self.ranks.index == 0 else None)
        if state is None:
            return 0
        with damage(path):
            try:
                self.student.load_state_dict(state.model)
            except RuntimeError as error:
                raise ValueError(error) from error
            restore_optimiser(self.optimiser, self.student, state.optimiser)
            self.mean = {n: state.mean[n].to(self.device) for n in self.mean}
            self.history = [EpochRow(**row) for row in state.history]
        log.info("continuing %s after epoch %d", path, len(self.history))
        return len(self.history)

    def save(self, path: Path) -> None:
        """Writes the state after a whole epoch."""
        state = TrainState(
            model=dict(self.student.state_dict()),
            optimiser=optimiser_tensors(self.optimiser, self.student),
            mean=self.mean,
            history=[row.to_json() for row in self.history],
        )
        save_state(path, state, self.run)

    def epoch(self, epoch: int) -> EpochRow:
        """Trains one epoch and reports it. All randomness follows from seed and epoch."""
        started, total = time.perf_counter(), 0.0
        self.student.train()
        if self.recipe.bn == "freeze":
            for norm in batch_norms(self.student):
                norm.eval()
        seed = self.recipe.seed * 1_000_003 + epoch
        part = part_of_batches(self.train, self.ranks)
        pairs = batches(part, self.batch, seed=seed, augment=self.augment, drop_last=True)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed + (self.ranks.index << 32))
            for step, (images, labels) in enumerate(pairs, epoch * self.steps):
                labels = None if labels is None else labels.to(self.device)
                images = images.to(self.device, memory_format=self.layout)
                total += self._step(step, images, labels)
        self._tell((epoch + 1) / self.recipe.epochs)
        self._level()
        seconds = time.perf_counter() - started
        row = EpochRow(epoch + 1, total / self.steps, self.judge(), seconds)
        self.history.append(row)
        return row

    def _step(self, step: int, images: Tensor, labels: Tensor | None) -> float:
        """Makes one step of the optimiser; returns the loss before it."""
        self._tell(step / (self.recipe.epochs * self.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.recipe, step, self.steps)
        with torch.autocast(
            self.device.type, torch.bfloat16, self.recipe.amp and self.device.type == "cuda"
        ):
            mine = self.network(images)
            theirs = () if self.teacher is None else taught(self.teacher, images)
        mine = mine if isinstance(mine, tuple) else (mine,)
        if labels is not None:
            check_labels(labels, mine[0])
        loss = training_loss(mine, labels, theirs, self.recipe)
        weight = len(images) / self.batch  # of this process's part; 1 alone
        total = self.ranks.total(float(loss.detach()) * weight)
        value = checked(total, step, self.steps, self.recipe)
        self.optimiser.zero_grad(set_to_none=True)
        (loss * (weight * self.ranks.count)).backward()  # type: ignore[no-untyped-call]
        if self.recipe.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.student.parameters(), self.recipe.grad_clip)
        self.optimiser.step()
        for name, current in _floating(self.student) if self.mean else ():
            self.mean[name].lerp_(current, 1 - (self.recipe.ema_decay or 0.0))
        return value

    def _tell(self, share: float) -> None:
        if self.schedule is not None:
            self.schedule(share)

    def judge(self) -> float | None:
        """Returns the accuracy on ``val`` of the weights that would be kept now, or None."""
        if self.val is None or not self.val.labelled:
            return None
        if not self.mean:
            return self._accuracy(self.val)
        own = {n: v.detach().clone() for n, v in _floating(self.student)}
        _assign(self.student, self.mean)
        try:
            return self._accuracy(self.val)
        finally:
            _assign(self.student, own)

    def _accuracy(self, val: LabelledData) -> float:
        """Returns the accuracy on all images, each process judging its part."""
        part = part_of_images(val, self.ranks)
        try:
            hits = round(accuracy(self.student, part) * len(part)) if len(part) else 0
        except NotANumberError as error:
            raise DivergedError(
                f"the network's answers are no longer numbers: the training diverged at lr "
                f"{self.recipe.lr:g}; lower lr, set grad_clip, or lengthen warm-up"
            ) from error
        return self.ranks.total(hits) / len(val)

    def _level(self) -> None:
        """Makes the running statistics those of all processes."""
        if self.recipe.bn == "freeze":
            return
        buffers = dict(self.student.named_buffers())
        means = [value for name, value in self.mean.items() if name in buffers]
        self.ranks.level([*floating(buffers.values()), *means])

    def finish(self) -> None:
        """Leaves in the network what the recipe keeps."""
        self._tell(1.0)
        _assign(self.student, self.mean)
        if self.recipe.bn == "reestimate":
            part = part_of_batches(self.train, self.ranks)
            images = (x.to(self.device) for x, _ in batches(part, self.batch) if len(x))
            reestimate(self.student, images)
            self._level()
        for network in (self.student, self.teacher):
            if network is not None:
                network.to(memory_format=torch.contiguous_format)
        self.student.eval()


def _floating(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the floating values of the state: weights and running statistics."""
    return ((n, v) for n, v in model.state_dict().items() if v.is_floating_point())


@torch.no_grad()
def _assign(model: nn.Module, values: Tensors) -> None:
    """Copies values into the model's own tensors."""
    own = model.state_dict()
    for name, value in values.items():
        own[name].copy_(value)
