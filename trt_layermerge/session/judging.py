"""A task's own figure, such as mean IoU: ``FILE.py:FUNCTION``, which returns what counts it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trt_layermerge.core.agreement import Tally
from trt_layermerge.core.pyfile import function_of
from trt_layermerge.data.loader import Images, pairs
from trt_layermerge.errors import UsageError, foreign
from trt_layermerge.finetune.evaluate import BATCH, outputs_for


@dataclass(frozen=True)
class TaskMetric:
    """What tells how good answers are; higher is better.

    Attributes:
        source: ``FILE.py:FUNCTION``. The function takes nothing and returns an object like
            torchmetrics': ``update(outputs, labels)`` with a tensor, or a dict of several by name,
            and ``compute()``.
    """

    source: str

    @property
    def name(self) -> str:
        """What the figure is called: as its function is."""
        return self.source.rpartition(":")[2]

    @cached_property
    def _function(self) -> Callable[[], Any]:
        file, _, function = self.source.rpartition(":")
        return function_of(Path(file), function)

    def begin(self) -> Tally:
        """Returns one that has counted nothing yet.

        Raises:
            UsageError: If there is no such function, or it returns nothing that counts.
        """
        with foreign(lambda why: UsageError(f"{self.source} cannot be called: {why}")):
            made = self._function()
        if not all(callable(getattr(made, verb, None)) for verb in ("update", "compute")):
            raise UsageError(
                f"{self.source} returned {type(made).__name__}; let it return an object with "
                "update(outputs, labels) and compute(), such as a metric of torchmetrics"
            )
        return _Counting(made, self.source)

    def of(self, network: nn.Module, images: Images) -> float:
        """Returns how good a network is on images, where its parameters are.

        Raises:
            UsageError: If the metric fails, or its figure is no finite number.
            CorruptInputError: If an output is NaN.
        """
        found = self.begin()
        for inputs, labels in pairs(images, BATCH):
            found.update(outputs_for(network, inputs), labels)
        return found.compute()


@dataclass(frozen=True)
class _Counting:
    """Shows a metric of the user's own tensors on the CPU, and checks what it says."""

    made: Any
    source: str

    def update(self, outputs: Mapping[str, Any], labels: Any) -> None:
        found = {name: torch.as_tensor(value) for name, value in outputs.items()}
        shown = next(iter(found.values())) if len(found) == 1 else found
        told: Tensor | None = None if labels is None else torch.as_tensor(labels).cpu()
        with foreign(self._failed):
            self.made.update(shown, told)

    def compute(self) -> float:
        with foreign(self._failed):
            value = float(self.made.compute())
        if not math.isfinite(value):
            raise UsageError(f"{self.source} says {value}, which is no figure; correct it")
        return value

    def _failed(self, why: str) -> UsageError:
        return UsageError(
            f"{self.source} cannot judge these answers and labels: {why}; correct it, or leave "
            "data.metric out"
        )
