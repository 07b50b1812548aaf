"""Draws scenes of ``test``, their truth, and what the original and the merged network find.

python examples/segmentation/picture.py runs/scenes examples/segmentation/scenes.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import scenes
from numpy.typing import NDArray
from PIL import Image

COLOURS = np.array(
    [
        *[(24, 24, 24), (230, 25, 75), (60, 180, 75)],
        *[(255, 225, 25), (67, 99, 216), (245, 130, 49)],
    ],
    np.uint8,
)


def found(model: Path, images: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns the class of every pixel, ``(N, 48, 48)``."""
    session = onnxruntime.InferenceSession(str(model))
    name = session.get_inputs()[0].name
    answers = [session.run(None, {name: image[None]})[0] for image in images]
    classes: NDArray[np.int64] = np.concatenate(answers).argmax(1)
    return classes


def main() -> None:
    """Writes the picture: one scene a column."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=10)
    options = parser.parse_args()

    pixels, truth = scenes.scenes("test", options.scenes)
    inputs = scenes.tensors("test", options.scenes)[0].numpy()
    maps = [truth, *(found(options.run / f"{m}.onnx", inputs) for m in ("original", "model"))]
    rows = [pixels, *(COLOURS[classes] for classes in maps)]
    whole = np.concatenate([np.concatenate(list(row), 1) for row in rows])
    Image.fromarray(whole).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
