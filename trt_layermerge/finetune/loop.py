"""Trains a relaxed network; a training that was ended goes on from its last whole epoch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from trt_layermerge.core.inputs import mapped, parts_of
from trt_layermerge.core.jsonio import damage
from trt_layermerge.core.outputs import Kind, kinds_of
from trt_layermerge.data.augment import parse_augment, seed_of
from trt_layermerge.data.loader import Batch, Batches, GivenBatches, Images
from trt_layermerge.data.sets import LabelledData, Part
from trt_layermerge.errors import DivergedError, UsageError
from trt_layermerge.finetune.device import device_named, layout_of
from trt_layermerge.finetune.evaluate import NotANumberError, evaluating, known_accuracy
from trt_layermerge.finetune.losses import answers, checked, taught, training_loss
from trt_layermerge.finetune.norms import batch_norms, in_training, reestimate
from trt_layermerge.finetune.optimiser import make_optimiser, optimiser_tensors, restore_optimiser
from trt_layermerge.finetune.processes import ProcessGroup
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

Metric: TypeAlias = Callable[[nn.Module], float]
"""What tells how good a network is, in eval mode, on the training's device."""


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One epoch: mean training loss, accuracy on ``val`` (or the metric), time spent."""

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
        val_accuracy: Of the weights left in the network (or the metric); None without ``val``.
        resumed_epochs: Epochs that an earlier call had already done.
    """

    history: tuple[EpochRow, ...]
    val_accuracy: float | None
    resumed_epochs: int


def finetune(
    student: nn.Module,
    train: Images,
    val: Images | None,
    recipe: FinetuneRecipe,
    *,
    teacher: nn.Module | None = None,
    metric: Metric | None = None,
    schedule: Schedule | None = None,
    state_path: Path | None = None,
    identity: str = "",
    on_epoch: Callable[[EpochRow], None] | None = None,
    device: str = "cpu",
    group: ProcessGroup | None = None,
    stop_after: int | None = None,
    workers: int | None = None,
    kinds: Sequence[Kind] | None = None,
) -> FinetuneResult:
    """Returns the history of a training; ``student`` is trained in place, on ``device``.

    The last epoch's weights are kept (or their running mean, ``ema_decay``): ``val`` is only
    reported, nothing is selected by it. With ``state_path``, the state is written after every
    epoch; the same call with the same start continues from it, and ends, on a CPU with the same
    number of threads, with the very same bits (if a loader of one's own draws from torch's
    generator or from none). The state of another start, recipe or ``identity`` is renamed.

    Args:
        student: The network at its start.
        train: Images to train on: a set, whose images are shuffled and changed as the recipe says;
            or batches, which are used as they are, from anything that can be iterated over anew
            every epoch, such as a DataLoader. A batch is a tensor ``(N, C, H, W)``, or a tuple or
            list of that and labels ``(N,)``. Without a length, batches are counted by one pass.
        val: Images to report the accuracy of, a set or batches with labels, or None; nothing is
            reported without labels.
        recipe: How to train.
        teacher: The original network, needed where the recipe distils; moved to ``device``.
        metric: Reported in the place of the accuracy.
        schedule: What else changes in the course of the training, such as activations that are
            annealed; at 1 it must leave the network as it is to be kept.
        state_path: File of the unfinished training.
        identity: What tells these images and this teacher from others, such as a hash of their
            files: a training on others is not continued.
        on_epoch: Called after every epoch, when its state is on the disk.
        device: Name of a torch device.
        group: The processes that train together, each calling this with the same arguments and
            computing where its ``device`` says; None for this one alone. Only the first one reads
            and writes the state. A training may be continued by another number of processes.
        stop_after: Epochs after which it ends early, at a learning rate that is still high.
        workers: Processes that load the images of a set; None for the usual number.
        kinds: What each output is (``core.outputs``); by default what their shapes tell.

    Raises:
        UsageError: If the recipe distils without a teacher or needs labels where there are none,
            a batch has fewer images than there are processes, or ``train`` gives no batches.
        DivergedError: If the loss is no longer finite.
        CorruptInputError: If the state is damaged, a label is beyond the network's classes, or
            the first loss is not finite.
        DeviceError: If the state cannot be written, or the device is not there.
    """
    if recipe.distill_weight > 0 and teacher is None:
        raise UsageError(
            f"the recipe distils with weight {recipe.distill_weight:g}, but no teacher is given; "
            "give the original network, or set distill_weight to 0"
        )
    check_teaching(recipe, train)
    group = group or ProcessGroup(device_named(device))
    feed = _feed(train, recipe, group, workers)
    training = _Training(student, feed, val, recipe, teacher, metric, group, identity, schedule)
    training.kinds = None if kinds is None else tuple(kinds)
    done = training.resume(state_path) if state_path else 0
    last = recipe.epochs if stop_after is None else min(stop_after, recipe.epochs)
    for epoch in range(done, last):
        row = training.epoch(epoch)
        if state_path and group.index == 0:
            training.save(state_path)
        if on_epoch:
            on_epoch(row)
    training.finish()
    rows = tuple(training.history)
    final = rows[-1].val_accuracy if rows and recipe.bn != "reestimate" else training.judge()
    return FinetuneResult(rows, final, done)


def check_teaching(recipe: FinetuneRecipe, train: Images) -> None:
    """Refuses to learn from labels where a set has none. Raises ``UsageError``."""
    if recipe.distill_weight < 1 and isinstance(train, LabelledData) and not train.labelled:
        raise UsageError(
            "the training images have no labels, so only the original network can teach; set "
            "finetune.options.distill_weight to 1, or give images with labels"
        )


@dataclass(frozen=True)
class _Feed:
    """What a training reads.

    Attributes:
        batches: Of the training.
        plain: The images as evaluation sees them.
        images: How many images or, of a loader, batches.
        size: Images of a whole batch, which the processes share; None if they are not shared.
    """

    batches: Batches | GivenBatches
    plain: Callable[[], Iterable[Batch]]
    images: int
    size: int | None


def _feed(train: Images, recipe: FinetuneRecipe, group: ProcessGroup, workers: int | None) -> _Feed:
    if not isinstance(train, LabelledData):
        if group.count > 1:
            raise UsageError(
                "several processes share the images of a set (npz:, imagefolder:, ...), and this "
                "is a loader of your own; train in one process, or give a set"
            )
        given = GivenBatches(train)
        return _Feed(given, lambda: given.drawn(None), len(given), None)
    size = min(recipe.batch, len(train))
    if size < group.count:
        raise UsageError(
            f"{group.count} processes cannot share batches of {size} images; start fewer"
        )
    share = (group.index, group.count)
    drawn = Batches(
        train,
        size,
        augmentation=parse_augment(recipe.augment, train),
        drop_last=True,
        share=share,
        workers=workers,
        pin=group.device.type == "cuda",
    )

    def plain() -> Iterable[Batch]:
        return Batches(train, size, share=share, workers=workers).drawn(None)

    return _Feed(drawn, plain, len(train), size)


class _Training:
    """Network, optimiser and history of one training under way."""

    def __init__(
        self,
        student: nn.Module,
        feed: _Feed,
        val: Images | None,
        recipe: FinetuneRecipe,
        teacher: nn.Module | None,
        metric: Metric | None,
        group: ProcessGroup,
        identity: str,
        schedule: Schedule | None,
    ) -> None:
        device = group.device
        self.run = fingerprint(student, recipe, feed.images, teacher is not None, identity)
        self.layout = layout_of(device)
        self.student = student.to(device).to(memory_format=self.layout)
        self.feed, self.val, self.metric = feed, val, metric
        self.network = group.wrap(self.student)
        self.teacher = None
        if teacher and recipe.distill_weight > 0:
            self.teacher = teacher.to(device).to(memory_format=self.layout)
        self.schedule = schedule
        self.kinds: tuple[Kind, ...] | None = None
        self.recipe, self.device, self.group = recipe, device, group
        self.steps = len(feed.batches)
        self.optimiser = make_optimiser(student, recipe)
        self.mean: Tensors = {}
        if recipe.ema_decay is not None:
            self.mean = {n: v.detach().clone() for n, v in _floating(student)}
        self.history: list[EpochRow] = []

    def resume(self, path: Path) -> int:
        """Continues from a state; returns the number of epochs it had done."""
        state = self.group.share(load_state(path, self.run) if self.group.index == 0 else None)
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
        norms = batch_norms(self.student)
        if self.recipe.bn == "freeze":
            for norm in norms:
                norm.eval()
        moving = in_training([norm for norm in norms if norm.training])
        seed, done = self.recipe.seed * 1_000_003 + epoch, 0
        with moving, _drawing_from(seed_of(seed, self.group.index), self.device):
            found = islice(self.feed.batches.drawn(seed), self.steps)
            for step, (images, labels) in enumerate(found, epoch * self.steps):
                total += self._step(step, *self._placed(images, labels))
                done += 1
        self._tell((epoch + 1) / self.recipe.epochs)
        self._level()
        seconds = time.perf_counter() - started
        row = EpochRow(epoch + 1, total / max(done, 1), self.judge(), seconds)
        self.history.append(row)
        return row

    def _placed(self, images: Any, labels: Tensor | None) -> Batch:
        """Returns a batch on the device."""
        labels = None if labels is None else labels.to(self.device, non_blocking=True)

        def placed(part: Tensor) -> Tensor:
            layout = self.layout if part.ndim == 4 else torch.preserve_format
            return part.to(self.device, non_blocking=True, memory_format=layout)

        return mapped(placed, images), labels

    def _step(self, step: int, images: Any, labels: Tensor | None) -> float:
        """Makes one step of the optimiser; returns the loss before it."""
        self._tell(step / (self.recipe.epochs * self.steps))
        for settings in self.optimiser.param_groups:
            settings["lr"] = learning_rate(self.recipe, step, self.steps)
        with torch.autocast(
            self.device.type, torch.bfloat16, self.recipe.amp and self.device.type == "cuda"
        ):
            mine = answers(self.network, images)
            theirs = None if self.teacher is None else taught(self.teacher, images)
        if labels is None and self.recipe.distill_weight < 1:
            raise UsageError(
                "the loader gives no labels, so only the original network can teach; set "
                "distill_weight to 1, or let it give (images, labels)"
            )
        if self.kinds is None:
            image = parts_of(images)[0].shape
            self.kinds = tuple(kinds_of(mine, image).values())
        loss = training_loss(mine, labels, theirs, self.recipe, self.kinds)
        weight = len(images) / (self.feed.size or len(images))  # of this process's part; 1 alone
        total = self.group.total(float(loss.detach()) * weight)
        value = checked(total, step, self.steps, self.recipe)
        self.optimiser.zero_grad(set_to_none=True)
        (loss * (weight * self.group.count)).backward()  # type: ignore[no-untyped-call]
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
        """Returns accuracy or metric of the weights that would be kept now, or None."""
        if self.val is None and self.metric is None:
            return None
        own = {n: v.detach().clone() for n, v in _floating(self.student) if self.mean}
        _assign(self.student, self.mean)
        try:
            with torch.random.fork_rng([]):  # whatever loaders draw
                return self._judged()
        except NotANumberError as error:
            raise DivergedError(
                f"the network's answers are no longer numbers: the training diverged at lr "
                f"{self.recipe.lr:g}; lower lr, set grad_clip, or lengthen warm-up"
            ) from error
        finally:
            _assign(self.student, own)

    def _judged(self) -> float | None:
        """Returns what the metric says, or the accuracy; processes judge their parts of a set."""
        if self.metric is not None:
            with evaluating(self.student):
                return self.group.share(self.metric(self.student))
        if self.group.count == 1 or not isinstance(self.val, LabelledData):
            return known_accuracy(self.student, self.val, kinds=self.kinds)
        if not self.val.labelled:
            return None
        part = Part(self.val, torch.arange(self.group.index, len(self.val), self.group.count))
        found = known_accuracy(self.student, part, kinds=self.kinds) if len(part) else 0.0
        return self.group.total(round((found or 0.0) * len(part), 6)) / len(self.val)

    def _level(self) -> None:
        """Makes the running statistics those of all processes."""
        if self.recipe.bn == "freeze":
            return
        buffers = dict(self.student.named_buffers())
        means = [value for name, value in self.mean.items() if name in buffers]
        self.group.level([*(b for b in buffers.values() if b.is_floating_point()), *means])

    def finish(self) -> None:
        """Leaves in the network what the recipe keeps."""
        self._tell(1.0)
        _assign(self.student, self.mean)
        if self.recipe.bn == "reestimate":
            plain = (mapped(lambda part: part.to(self.device), x) for x, _ in self.feed.plain())
            reestimate(self.student, plain)
            self._level()
        for network in (self.student, self.teacher):
            if network is not None:
                network.to(memory_format=torch.contiguous_format)
        self.student.eval()


@contextmanager
def _drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Lets torch draw from a seed; afterwards the caller's own randomness goes on as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _floating(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the floating values of the state: weights and running statistics."""
    return ((n, v) for n, v in model.state_dict().items() if v.is_floating_point())


@torch.no_grad()
def _assign(model: nn.Module, values: Tensors) -> None:
    """Copies values into the model's own tensors."""
    own = model.state_dict()
    for name, value in values.items():
        own[name].copy_(value)
