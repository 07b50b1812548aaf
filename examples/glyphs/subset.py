"""Draws the images that are shipped with the project from the full glyph set.

    python examples/glyphs/subset.py DIR

``DIR`` holds the full ``train.npz``, ``val.npz`` and ``test.npz``. Images are drawn at random with
a fixed seed, within each file, so no font moves from one split to another.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

COUNTS = {"train": 2000, "val": 300, "test": 1000}
SEED = 0


def main() -> None:
    """Writes ``data/train.npz``, ``data/val.npz`` and ``data/test.npz`` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    source = parser.parse_args().folder
    target = Path(__file__).parent / "data"
    target.mkdir(exist_ok=True)
    for split, count in COUNTS.items():
        with np.load(source / f"{split}.npz", allow_pickle=False) as arrays:
            total = len(arrays["labels"])
            picked = np.sort(np.random.default_rng(SEED).choice(total, count, replace=False))
            parts = {name: arrays[name][picked] for name in ("images", "labels", "font_id")}
            names = arrays["class_names"]
        path = target / f"{split}.npz"
        np.savez_compressed(path, **parts, class_names=names)
        print(f"{path.name}: {count} of {total} images, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
