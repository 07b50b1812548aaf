"""Whose answers a merged network changed: classes that suffer most, and images to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_layermerge.backends.base import Array
from trt_layermerge.core.agreement import probabilities
from trt_layermerge.core.inputs import parts_of
from trt_layermerge.core.jsonio import Json

SHOWN_CLASSES, SHOWN_IMAGES = 5, 12


@dataclass(frozen=True, slots=True)
class Change:
    """An image whose answer is another one after merging.

    Attributes:
        image: Its place among the images.
        pixels: The network's input, ``(C, H, W)``.
        original: Class of the original network, and the probability that it gave.
        merged: The same of the merged network.
    """

    image: int
    pixels: Array
    original: tuple[int, float]
    merged: tuple[int, float]


class Changes:
    """Counts, batch by batch, what became of the answers ``(N, C)`` of one network in another."""

    def __init__(self) -> None:
        """Has counted nothing yet."""
        self._count = 0
        self._rows: list[Array] = []
        self._changed: list[Change] = []

    def add(self, images: Any, original: Array, merged: Array, labels: Array | None) -> None:
        """Counts a batch.

        Args:
            images: Inputs ``(n, C, H, W)``, or several of which these are the first.
            original: Logits of the original network, ``(n, C)``.
            merged: Those of the merged one.
            labels: The right classes ``(n,)``, or None.
        """
        before, after = (each.argmax(1) for each in (original, merged))
        told = before if labels is None else labels
        self._rows.append(np.stack([told, before == told, after == told], 1).astype(np.int64))
        sure, now = probabilities(original), probabilities(merged)
        pixels = parts_of(images)[0]
        for i in np.flatnonzero(before != after):
            old, new = (int(before[i]), float(sure[i].max())), (int(after[i]), float(now[i].max()))
            self._changed.append(Change(self._count + int(i), np.array(pixels[i]), old, new))
        self._changed.sort(key=lambda change: -change.original[1])
        del self._changed[SHOWN_IMAGES:]
        self._count += len(before)

    def images(self) -> tuple[Change, ...]:
        """Returns those images that the original was surest of, the surest first."""
        return tuple(self._changed)

    def classes(self) -> list[Json]:
        """Returns the classes that lost most: how many images, and which share was right.

        Without labels, what the original said counts as right. Only classes that lost are told.
        """
        rows = np.concatenate([np.empty((0, 3), np.int64), *self._rows])
        found = []
        for index in np.unique(rows[:, 0]):
            own = rows[rows[:, 0] == index]
            before, after = own[:, 1].mean(), own[:, 2].mean()
            if after < before:
                shares = {"original": float(before), "merged": float(after)}
                found.append({"class": int(index), "images": len(own), **shares})
        found.sort(key=lambda row: (row["merged"] - row["original"], -row["images"]))
        return found[:SHOWN_CLASSES]
