"""Cuts digits out of the labelled glyph images: their ink alone, to be drawn on other grounds.

    python examples/segmentation/glyphs.py DIR

``DIR`` holds the full ``train.npz``, ``val.npz`` and ``test.npz`` of the glyph set, which share no
font. Writes ``glyphs.npz``: for each split the opacity of the ink, uint8 ``(N, 32, 32)`` in steps
of 17, and the digits, ``(N,)``. Images whose ink cannot be told from its ground are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FIRST = 26  # the set's classes are the letters, then the digits
MOST = {"train": 1600, "val": 300, "test": 500}
CLEAR = 0.75
"""Share of the colours' variance that lies between ink and ground, at least."""


def ink(image: NDArray[np.uint8]) -> NDArray[np.float64] | None:
    """Returns the opacity of the glyph in the middle, ``(32, 32)`` from 0 to 1; None if unclear."""
    colours = image.reshape(-1, 3).astype(np.float64)
    colours -= colours.mean(0)
    along = colours @ np.linalg.svd(colours, full_matrices=False)[2][0]
    low, high = np.percentile(along, (5, 95))
    for _ in range(20):  # two means
        upper = along > (low + high) / 2
        if not 0 < upper.sum() < len(upper):
            return None
        low, high = along[~upper].mean(), along[upper].mean()
    within = np.where(upper, along - high, along - low)
    if 1 - within.var() / colours.var(0).sum() < CLEAR:
        return None
    opacity = np.clip((along - low) / (high - low), 0, 1).reshape(image.shape[:2])
    edge = np.concatenate([opacity[0], opacity[-1], opacity[:, 0], opacity[:, -1]])
    if edge.mean() > 0.5:
        opacity = 1 - opacity
    shape = middle(opacity > 0.5)
    rows, columns = np.nonzero(shape)
    inside = rows.size and min(rows.min(), columns.min()) > 0
    inside = inside and max(rows.max(), columns.max()) < len(shape) - 1
    if not inside or np.ptp(rows) < 11 or not 30 <= rows.size <= 350:
        return None
    return opacity * grown(shape)


def middle(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the connected part of a mask that is nearest to its centre."""
    points = np.argwhere(mask)
    if not len(points):
        return mask
    found = np.zeros_like(mask)
    centre = (np.array(mask.shape) - 1) / 2
    found[tuple(points[((points - centre) ** 2).sum(1).argmin()])] = True
    while True:
        larger = grown(found) & mask
        if (larger == found).all():
            return found
        found = larger


def grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns a mask with all eight neighbours of its pixels."""
    padded = np.pad(mask, 1)
    rows, columns = mask.shape
    parts = [padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return np.any(parts, axis=0)


def main() -> None:
    """Writes ``glyphs.npz`` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    source = parser.parse_args().folder
    found: dict[str, NDArray[np.uint8]] = {}
    for split, most in MOST.items():
        with np.load(source / f"{split}.npz", allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
        cut = [(ink(images[i]), labels[i] - FIRST) for i in np.flatnonzero(labels >= FIRST)]
        clear = [(opacity, digit) for opacity, digit in cut if opacity is not None][:most]
        levels = [np.round(opacity * 15) * 17 for opacity, _ in clear]
        found[f"{split}_ink"] = np.array(levels, np.uint8)
        found[f"{split}_digit"] = np.array([digit for _, digit in clear], np.uint8)
        print(f"{split}: {len(clear)} of {len(cut)} digits")
    np.savez_compressed(Path(__file__).parent / "glyphs.npz", **found)


if __name__ == "__main__":
    main()
