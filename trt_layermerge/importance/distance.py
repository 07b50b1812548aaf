"""How far answers are from the original network's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trt_layermerge.core.outputs import Kind, kind_of, named

KL, RELATIVE = "KL", "relative MSE"
SMALLEST_COLUMN = 1e-12
"""Of the largest column's power: what a column of ``(N, C)`` counts as at least."""


@dataclass(frozen=True)
class Distance:
    """Distance of a network's answers from recorded ones, by their kinds (``core.outputs``).

    Of ``classes``, in nats: mean over images, and pixels where there are any, of
    Σ p · (log p − log q), where p and q are the softmax over the classes of the original and of the
    other logits. Of ``labels`` the same with p and 1 − p, the sigmoid of each, mean over labels; of
    ``probabilities`` the same of what they are. Of ``values``, Σ (y' − y)² / Σ y², images together;
    of each column of ``(N, C)`` by itself, and their mean. Of several outputs the mean counts;
    ``indices`` do not.

    Attributes:
        kinds: What each output is.
        originals: The original network's outputs, batch by batch.
    """

    kinds: tuple[Kind, ...]
    originals: tuple[tuple[Tensor, ...], ...]

    @staticmethod
    def to(
        outputs: Sequence[Any], kinds: Sequence[Kind] | None = None, image: Sequence[int] = ()
    ) -> Distance:
        """Returns the distance to the original network's outputs.

        Args:
            outputs: What it puts out, one for each batch.
            kinds: What each tensor is; by default what their shapes tell.
            image: Shape of the inputs, ``(N, C, H, W)``, by which class maps are known then.
        """
        originals = tuple(tuple(named(output).values()) for output in outputs)
        if kinds is None:
            kinds = [kind_of(t.shape, image, floating=t.is_floating_point()) for t in originals[0]]
        return Distance(tuple(kinds), originals)

    @property
    def name(self) -> str:
        """``KL``, or ``relative MSE`` where all outputs are values; both where some are."""
        found = {RELATIVE if kind == "values" else KL for kind in self.kinds if kind != "indices"}
        return " and ".join(sorted(found)) or RELATIVE

    def first(self, batches: int) -> Distance:
        """Returns the distance on the first batches only."""
        return Distance(self.kinds, self.originals[:batches])

    def of(self, outputs: Iterator[Any]) -> float:
        """Returns the distance of other outputs, one a batch; infinity if one is not finite."""
        sums = [
            (torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))
            for kind in self.kinds
        ]
        for originals, output in zip(self.originals, outputs, strict=True):
            theirs = named(output).values()
            for i, (kind, our, their) in enumerate(zip(self.kinds, originals, theirs, strict=True)):
                if kind == "indices":
                    continue
                if not torch.isfinite(their).all():
                    return math.inf
                part, weight = _part(kind, our.double(), their.double())
                sums[i] = sums[i][0] + part, sums[i][1] + weight
        ratios = [_ratio(*s) for s, kind in zip(sums, self.kinds, strict=True) if kind != "indices"]
        return sum(ratios) / len(ratios) if ratios else 0.0


def _part(kind: Kind, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sum over one batch of one tensor, and what to divide the sum of all by."""
    if kind == "classes":
        p, q = ours.log_softmax(1), theirs.log_softmax(1)
        return (p.exp() * (p - q)).sum(), ours.new_tensor(ours.numel() / ours.shape[1])
    if kind == "labels":
        loss = F.binary_cross_entropy_with_logits
        p = ours.sigmoid()
        return (loss(theirs, p, reduction="none") - loss(ours, p, reduction="none")).sum(), (
            ours.new_tensor(ours.numel())
        )
    if kind == "probabilities":
        every = F.binary_cross_entropy
        apart = every(theirs, ours, reduction="sum") - every(ours, ours, reduction="sum")
        return apart, ours.new_tensor(ours.numel())
    errors, power = (theirs - ours).square(), ours.square()
    return (errors.sum(0), power.sum(0)) if ours.ndim == 2 else (errors.sum(), power.sum())


def _ratio(total: Tensor, weight: Tensor) -> float:
    """Returns the mean over columns of a sum over what to divide it by."""
    if not float(weight.max()):
        return 0.0 if not float(total.max()) else math.inf
    return float((total / weight.clamp_min(SMALLEST_COLUMN * weight.max())).mean())
