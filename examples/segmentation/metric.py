"""Mean intersection over union: the usual figure of segmentation."""

from __future__ import annotations

import torch
from torch import Tensor

VOID = 255


class MeanIoU:
    """Counts pixels of every pair of true and found class, over as many batches as there are."""

    def __init__(self) -> None:
        self.counts: Tensor | None = None

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch: logits ``(N, C, H, W)`` and classes ``(N, H, W)``, 255 for none."""
        classes, known = logits.shape[1], labels != VOID
        pairs = labels[known] * classes + logits.argmax(1)[known]
        counts = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        self.counts = counts if self.counts is None else self.counts + counts

    def compute(self) -> float:
        """Returns the mean over the classes that occur, from 0 to 1."""
        assert self.counts is not None
        hits = self.counts.diagonal().double()
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        return float((hits / union)[union > 0].mean())


def mean_iou() -> MeanIoU:
    """Returns one that has counted nothing yet."""
    return MeanIoU()
