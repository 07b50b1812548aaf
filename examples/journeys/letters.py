"""Writes what people have: a network in a file, a checkpoint of torch.save, folders of images.

    python examples/journeys/letters.py DIR [--images N]

``DIR/net.py`` is examples/glyphs/nets.py; ``DIR/checkpoint.pth`` holds its trained ResNet-20 as
training scripts leave it, beside what else they keep; ``DIR/{train,val,test}/CLASS/*.png`` are N
images of each set of examples/glyphs.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

GLYPHS = Path(__file__).parents[1] / "glyphs"


def main() -> None:
    """Writes all of it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1000, help="of each set, at most")
    options = parser.parse_args()
    for split in ("train", "val", "test"):
        data = np.load(GLYPHS / "data" / f"{split}.npz")
        images, labels, names = data["images"], data["labels"], data["class_names"]
        for i in np.linspace(0, len(labels) - 1, min(len(labels), options.images), dtype=int):
            # Folders are numbered by name, and the network has its own order of classes.
            name = f"{labels[i]:02}-{names[labels[i]]}"
            file = options.folder / split / name / f"{i:04}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i]).save(file)
    shutil.copy(GLYPHS / "nets.py", options.folder / "net.py")
    weights = load_file(GLYPHS / "weights" / "resnet20.safetensors")
    checkpoint = {
        "epoch": 30,
        "state_dict": {f"module.{name}": value for name, value in weights.items()},
        "args": {"arch": "resnet20", "lr": 0.004},
    }
    torch.save(checkpoint, options.folder / "checkpoint.pth")


if __name__ == "__main__":
    main()
