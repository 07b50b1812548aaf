"""Processor time from a JPEG to 224x224, on synthetic photos: run it as ``python FILE``."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from trt_layermerge.finetune import images
from trt_layermerge.finetune.images import Framing, decode_all

BATCH = 50


def make(folder: Path, width: int, height: int, count: int) -> None:
    """Writes JPEGs of smooth colours with some noise, quality 90, seed 0."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    size = (height // 16, width // 16, 3)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + rng.integers(-12, 12, (height, width, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)


def main() -> None:
    """Prints milliseconds of processor time for an image, with and without decoding it smaller."""
    gap = images.GAP
    with tempfile.TemporaryDirectory() as place:
        for width, height, count in ((500, 375, 1000), (3000, 2000, 40)):
            folder = Path(place) / f"{width}x{height}"
            make(folder, width, height, count)
            files = [(path, None) for path in sorted(folder.iterdir())]
            for name, images.GAP in (("smaller where it can be", gap), ("always whole", 1e9)):
                start = time.process_time()
                for i in range(0, count, BATCH):
                    decode_all(files[i : i + BATCH], Framing((224, 224)))
                spent = (time.process_time() - start) / count * 1e3
                print(f"{width}x{height}, {name}: {spent:.1f} ms")


if __name__ == "__main__":
    main()
