"""How far answers are from the original network's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

DistanceName = Literal["KL", "relative MSE"]


@dataclass(frozen=True)
class Distance:
    """Distance of a network's answers from recorded ones.

    ``KL``, for logits ``(N, K)`` with K > 1: mean over images of Σ p · (log p − log q), in nats,
    where p and q are the softmax of the original and of the other logits. ``relative MSE``
    otherwise: Σ (y' − y)² / Σ y², images together. Of several tensors the mean counts.

    Attributes:
        name: ``KL`` where every tensor holds logits.
        originals: The original network's outputs, batch by batch.
    """

    name: DistanceName
    originals: tuple[tuple[Tensor, ...], ...]

    @staticmethod
    def to(outputs: Sequence[Any]) -> Distance:
        """Returns the distance to the original network's outputs, one a batch."""
        originals = tuple(tuple(_tensors(output)) for output in outputs)
        logits = bool(originals[0]) and all(map(_are_logits, originals[0]))
        return Distance("KL" if logits else "relative MSE", originals)

    def first(self, batches: int) -> Distance:
        """Returns the distance on the first batches only."""
        return Distance(self.name, self.originals[:batches])

    def of(self, outputs: Iterator[Any]) -> float:
        """Returns the distance of other outputs, one a batch; infinity if one is not finite."""
        sums = [[0.0, 0.0] for _ in self.originals[0]]
        for originals, output in zip(self.originals, outputs, strict=True):
            for entry, ours, theirs in zip(sums, originals, _tensors(output), strict=True):
                if not torch.isfinite(theirs).all():
                    return math.inf
                part, weight = _part(ours.double(), theirs.double())
                entry[0], entry[1] = entry[0] + part, entry[1] + weight
        ratios = [t / s if s else 0.0 if t == 0 else math.inf for t, s in sums]
        return sum(ratios) / len(ratios) if ratios else 0.0


def _are_logits(tensor: Tensor) -> bool:
    return tensor.ndim == 2 and tensor.shape[1] > 1


def _part(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Returns the sum over one batch of one tensor, and what to divide the sum of all by."""
    if not _are_logits(ours):
        return float((theirs - ours).square().sum()), float(ours.square().sum())
    p, q = ours.log_softmax(1), theirs.log_softmax(1)
    return float((p.exp() * (p - q)).sum()), float(len(ours))


def _tensors(output: Any) -> list[Tensor]:
    """Returns the floating tensors of an output, in order."""
    return [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
