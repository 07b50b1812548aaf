"""One training by several processes, a process group: each takes its part of every batch.

A step is that of one process on the whole batch: the same images in the same order, gradients added
up over the processes and weighted by the images of each. What differs is that a batch normalisation
in training sees the images of its own process (as synchronised ones need a GPU and a message a
layer), that each process draws its own augmentation and dropout, and the order of additions. The
running statistics are averaged over the processes after every epoch.

Accelerate does the work where a launcher started several processes, and is left alone otherwise:
its state is one for the whole program, so that a training within somebody's notebook would decide
on the device and precision of their own trainings.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

PATIENCE = timedelta(hours=3)
"""How long a process waits for another one, such as for the first to repair the network."""

T = TypeVar("T")


class ProcessGroup:
    """The processes of a training as one of them sees them: here, a single one.

    ``index`` is its number from 0, of ``count``; only the first one writes. It computes on
    ``device``.
    """

    def __init__(self, device: torch.device, index: int = 0, count: int = 1) -> None:
        self.device, self.index, self.count = device, index, count

    def wrap(self, student: nn.Module) -> nn.Module:
        """Returns what to run instead, so that gradients are averaged over the processes."""
        return student

    def total(self, value: float) -> float:
        """Returns the sum of what every process gives."""
        return value

    def share(self, thing: T) -> T:
        """Returns what the first process gives, whatever the others do."""
        return thing

    def level(self, tensors: Sequence[Tensor]) -> None:
        """Replaces floating tensors by their mean over the processes."""


class Accelerated(ProcessGroup):
    """The processes that ``accelerate launch`` or ``torchrun`` started, through Accelerate.

    Args:
        cpu: Whether to compute on processors even where there are GPUs; otherwise each process
            takes the GPU of its number.
    """

    def __init__(self, *, cpu: bool) -> None:
        # Imported behind `init_process_group`, its default arguments hold the group, whose threads
        # then outlive `close` and may abort a process that ends (pytorch#190489).
        import_module("torch.distributed.nn")
        accelerate: Any = import_module("accelerate")
        utils: Any = import_module("accelerate.utils")
        self._broadcast = utils.broadcast_object_list
        self._accelerator: Any = accelerate.Accelerator(
            cpu=cpu,
            mixed_precision="no",  # the recipe says where to compute in less
            kwargs_handlers=[
                # Parameters that no output depends on are allowed in a static graph.
                utils.DistributedDataParallelKwargs(broadcast_buffers=False, static_graph=True),
                utils.InitProcessGroupKwargs(timeout=PATIENCE),
            ],
        )
        found = self._accelerator
        super().__init__(found.device, found.process_index, found.num_processes)

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
