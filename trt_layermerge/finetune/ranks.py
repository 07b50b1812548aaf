"""One training by several processes: each takes its part of every batch.

A step is that of one process on the whole batch: the same images in the same order, gradients added
up over the processes and weighted by the images of each. What differs is that a batch normalisation
in training sees the images of its own process (as synchronised ones need a GPU and a message a
layer), that each process draws its own augmentation and dropout, and the order of additions. The
running statistics are averaged over the processes after every epoch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any, Protocol, TypeVar

import torch
from torch import Generator, Tensor, nn

from trt_layermerge.errors import MissingDependencyError
from trt_layermerge.finetune.augment import Augment
from trt_layermerge.finetune.data import LabelledData, Part

PATIENCE = timedelta(hours=3)
"""How long a process waits for another one, such as for the first to repair the network."""

T = TypeVar("T")


class Ranks(Protocol):
    """The processes of a training, as one of them sees them.

    Attributes:
        index: Number of this process, from 0; only the first one writes.
        count: How many there are.
        device: Where this one computes.
    """

    index: int
    count: int
    device: torch.device

    def wrap(self, student: nn.Module) -> nn.Module:
        """Returns what to run instead, so that gradients are averaged over the processes."""

    def total(self, value: float) -> float:
        """Returns the sum of what every process gives."""

    def share(self, thing: T) -> T:
        """Returns what the first process gives, whatever the others do."""

    def level(self, tensors: Sequence[Tensor]) -> None:
        """Replaces floating tensors by their mean over the processes."""


@dataclass
class Alone:
    """A single process."""

    device: torch.device
    index: int = 0
    count: int = 1

    def wrap(self, student: nn.Module) -> nn.Module:
        """Returns the network itself."""
        return student

    def total(self, value: float) -> float:
        """Returns the value itself."""
        return value

    def share(self, thing: T) -> T:
        """Returns the thing itself."""
        return thing

    def level(self, tensors: Sequence[Tensor]) -> None:
        """Leaves the tensors as they are."""


class Accelerated:
    """The processes that ``accelerate launch`` or ``torchrun`` started, through Accelerate.

    Args:
        cpu: Whether to compute on processors even where there are GPUs; otherwise each process
            takes the GPU of its number.

    Raises:
        MissingDependencyError: If Accelerate is not installed.
    """

    def __init__(self, *, cpu: bool) -> None:
        try:
            accelerate: Any = import_module("accelerate")
        except ImportError as error:
            raise MissingDependencyError(
                "accelerate", "training by several processes", "accelerate"
            ) from error
        # Imported behind `init_process_group`, its default arguments hold the group, whose threads
        # then outlive `close` and may abort a process that ends (pytorch#190489).
        import_module("torch.distributed.nn")
        utils: Any = import_module("accelerate.utils")
        self._broadcast = utils.broadcast_object_list
        self._accelerator = accelerate.Accelerator(
            cpu=cpu,
            mixed_precision="no",  # the recipe says where to compute in less
            kwargs_handlers=[
                # Parameters that no output depends on are allowed in a static graph.
                utils.DistributedDataParallelKwargs(broadcast_buffers=False, static_graph=True),
                utils.InitProcessGroupKwargs(timeout=PATIENCE),
            ],
        )
        self.index: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device

    def wrap(self, student: nn.Module) -> nn.Module:
        """Returns the network, its state that of the first process, its gradients averaged."""
        state = {name: value.cpu() for name, value in student.state_dict().items()}
        student.load_state_dict(self.share(state))
        with warnings.catch_warnings():
            # Newer torch has another name for it, which Accelerate does not know.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            wrapped: nn.Module = self._accelerator.prepare(student)
        return wrapped

    def total(self, value: float) -> float:
        """Returns the sum of what every process gives."""
        own = torch.tensor(value, dtype=torch.float64, device=self.device)
        return float(self._accelerator.reduce(own, "sum"))

    def share(self, thing: T) -> T:
        """Returns what the first process gives; it must be picklable."""
        things: list[T] = self._broadcast([thing])
        return things[0]

    def level(self, tensors: Sequence[Tensor]) -> None:
        """Replaces floating tensors by their mean over the processes, in one message."""
        if not tensors:
            return
        flat = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
        means = self._accelerator.reduce(flat, "mean").split([t.numel() for t in tensors])
        with torch.no_grad():
            for tensor, mean in zip(tensors, means, strict=True):
                tensor.copy_(mean.view_as(tensor))

    def close(self) -> None:
        """Leaves the other processes, and ends the threads that spoke with them."""
        self._accelerator.end_training()


@dataclass(frozen=True)
class PartOfBatches:
    """Data of which a process gets its near-equal part of every batch that is asked for."""

    data: LabelledData
    index: int
    count: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of every label."""
        return self.data.class_names

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.data.labelled

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns images and labels of this process's part."""
        return self.data.batch(indices.tensor_split(self.count)[self.index])


def part_of_batches(data: LabelledData, ranks: Ranks) -> LabelledData:
    """Returns data that give this process its part of every batch; the data if it is alone."""
    return data if ranks.count == 1 else PartOfBatches(data, ranks.index, ranks.count)


def part_of_images(data: LabelledData, ranks: Ranks) -> LabelledData:
    """Returns every ``count``-th image, from this process's number on; it may be empty."""
    if ranks.count == 1:
        return data
    return Part(data, torch.arange(ranks.index, len(data), ranks.count))


def own_augment(augment: Augment | None, ranks: Ranks) -> Augment | None:
    """Returns an augmentation whose random numbers differ from those of the other processes."""
    if augment is None or ranks.index == 0:
        return augment
    shared = augment

    def apply(images: Tensor, generator: Generator) -> Tensor:
        drawn = int(torch.randint(1 << 62, (1,), generator=generator))
        return shared(images, torch.Generator().manual_seed(drawn + ranks.index))

    return apply


def floating(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Returns the floating ones of some tensors."""
    return [tensor for tensor in tensors if tensor.is_floating_point()]
