"""How far answers are from the original network's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

DistanceName = Literal["KL", "relative MSE"]


@dataclass(frozen=True)
class Distance:
    """Distance of a network's answers from recorded ones.

    ``KL``, for logits ``(N, K)`` with K > 1: mean over images of Σ p · (log p − log q), in nats,
    where p and q are the softmax of the original and of the other logits. ``relative MSE``
    otherwise: Σ (y' − y)² / Σ y² over every tensor of the output, images together.

    Attributes:
        name: Which of the two.
        originals: The original network's outputs, batch by batch.
    """

    name: DistanceName
    originals: tuple[tuple[Tensor, ...], ...]

    @staticmethod
    def to(outputs: Sequence[Any]) -> Distance:
        """Returns the distance to the original network's outputs, one a batch."""
        originals = tuple(tuple(_tensors(output)) for output in outputs)
        first = outputs[0]
        logits = isinstance(first, Tensor) and first.ndim == 2 and first.shape[1] > 1
        return Distance("KL" if logits else "relative MSE", originals)

    def first(self, batches: int) -> Distance:
        """Returns the distance on the first batches only."""
        return Distance(self.name, self.originals[:batches])

    def of(self, outputs: Iterator[Any]) -> float:
        """Returns the distance of other outputs, one a batch; infinity if one is not finite."""
        total = scale = 0.0
        for originals, output in zip(self.originals, outputs, strict=True):
            for ours, theirs in zip(originals, _tensors(output), strict=True):
                if not torch.isfinite(theirs).all():
                    return math.inf
                part, weight = self._part(ours.double(), theirs.double())
                total, scale = total + part, scale + weight
        return total / scale if scale else 0.0 if total == 0 else math.inf

    def _part(self, ours: Tensor, theirs: Tensor) -> tuple[float, float]:
        """Returns the sum over one batch, and what to divide the sum of all by."""
        if self.name == "relative MSE":
            return float((theirs - ours).square().sum()), float(ours.square().sum())
        p, q = ours.log_softmax(1), theirs.log_softmax(1)
        return float((p.exp() * (p - q)).sum()), float(len(ours))


def _tensors(output: Any) -> list[Tensor]:
    """Returns the floating tensors of an output, in order."""
    found: list[Tensor] = []

    def collect(part: Any) -> None:
        if isinstance(part, Tensor) and part.is_floating_point():
            found.append(part)

    map_aggregate(output, collect)
    return found
