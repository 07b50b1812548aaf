"""Makes weights and images for EfficientNet-Lite0: ImageNet's weights, photographs without labels.

    python examples/lite0/prepare.py --weights FILE.pth --photographs DIR... [--out runs/lite0]

The weights' names become timm's, and the network must know the cat and the cup of scikit-image.
Crops of the photographs go to ``train``, ``val`` and ``test`` below the folder; no photograph has
crops in two of them. README.md beside this file says where weights and photographs come from.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from torch import Tensor, nn

from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.data.folders import framed
from trt_layermerge.data.images import Framing, images_below, read_image
from trt_layermerge.data.sources import normalised
from trt_layermerge.errors import CorruptInputError, LayerMergeError, UsageError
from trt_layermerge.models.networks import load_network
from trt_layermerge.models.weights import read_weights

MODEL = "timm:tf_efficientnet_lite0"
PREPROCESS = Preprocess(1 / 255, (0.5,) * 3, (0.5,) * 3)
FRAMING = Framing((224, 224), 0.875, "bicubic")
"""How the network was trained to see whole images."""

KNOWN = {"chelsea": {"cat", "tabby"}, "coffee": {"espresso", "cup", "mug"}}
"""Two photographs of scikit-image, and words one of which is in the name of what they show."""

OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
OUTSIDE |= {"_fc": "classifier"}
INSIDE = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
INSIDE |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Names of a block's parts; the first block expands nothing."""

DEPTHS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each stage: the checkpoint counts them through."""

DRAWINGS = frozenset((Path(__file__).parent / "drawings.txt").read_text().split())
"""Pictures of these packages that are no photographs: they serve to train, and judge nothing."""

SHARES = {"test": 0.3, "val": 0.15}
"""Shares of the photographs; all others, and the drawings, are for ``train``."""

SUFFIXES = (".jpg", ".png", ".webp")
"""What photographs are; scikit-image's TIFF and GIF files are something else."""

FLAT = 12.0
"""Standard deviation of the grey levels of a crop below which another is drawn: sky and walls."""


def renamed(state: Mapping[str, Tensor], depths: Sequence[int] = DEPTHS) -> dict[str, Tensor]:
    """Returns the tensors of the checkpoint by timm's names.

    Args:
        state: The tensors by their own names.
        depths: Blocks of each stage; Lite1 and Lite2 have others.

    Raises:
        CorruptInputError: If a name is none of EfficientNet-Lite0's.
    """
    places = [f"blocks.{stage}.{i}" for stage, depth in enumerate(depths) for i in range(depth)]

    def name(key: str) -> str:
        parts = key.split(".")
        if parts[0] != "_blocks":
            return ".".join([OUTSIDE[parts[0]], *parts[1:]])
        number = int(parts[1])
        part = (INSIDE if number else FIRST)[parts[2]]
        return ".".join([places[number], part, *parts[3:]])

    try:
        return {name(key): value.contiguous() for key, value in state.items()}
    except (KeyError, IndexError, ValueError) as error:
        raise CorruptInputError(f"no weights of EfficientNet-Lite0: {error}") from error


def inputs_of(file: Path) -> Tensor:
    """Returns a whole photograph as the network was trained to see it, ``(1, 3, 224, 224)``."""
    return normalised(framed(read_image(file, None, 256), FRAMING)[None], PREPROCESS)


def answers(model: nn.Module, file: Path, count: int = 5) -> list[tuple[str, float]]:
    """Returns the likeliest classes of a whole photograph and their probabilities."""
    with torch.no_grad():
        found = model(inputs_of(file)).softmax(1)[0].topk(count)
    names = ImageNetInfo()
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [(names.index_to_description(index).split(",")[0], share) for index, share in pairs]


def check(model: nn.Module, photographs: Mapping[str, Path]) -> None:
    """Passes silently if the network knows the cat and the cup.

    Args:
        model: The network, in eval mode.
        photographs: Files by the photograph's name.

    Raises:
        UsageError: If scikit-image's photographs are not among them.
        CorruptInputError: If the likeliest class is another: the weights do not fit their names.
    """
    for name, words in KNOWN.items():
        if name not in photographs:
            raise UsageError(
                f"the weights are checked on scikit-image's photographs, and there is no {name}; "
                "name its folder skimage/data too (--photographs)"
            )
        (found, share), *_ = answers(model, photographs[name])
        print(f"{name}: {found}, {share:.0%}")
        if not words & set(found.split()):
            raise CorruptInputError(
                f"the network sees {found} in {name}, none of {', '.join(sorted(words))}: these "
                "are not EfficientNet-Lite0's weights for ImageNet, or their names are mistaken"
            )


def photograph_of(file: Path) -> str:
    """Returns the name of what a file shows, without its size, its light or the camera's side."""
    parts = [
        p for p in file.with_suffix("").parts if p not in ("contents", "images", "images_dark")
    ]
    name = parts[-2] if re.fullmatch(r"\d+x\d+", parts[-1]) else parts[-1]
    return re.sub(r"[-_](\d+x\d+|[dl]|left|right)$", "", name)


def photographs_in(folders: Iterable[Path], size: int) -> dict[str, Path]:
    """Returns the largest file of every photograph, by its name, in order.

    Args:
        folders: Where to look; previews are left out.
        size: Rows and columns that it has at least.
    """
    found: dict[str, tuple[int, Path]] = {}
    for file in (file for folder in folders for file in images_below(folder)):
        preview = file.stem == "screenshot" or "images_dark" in file.parts
        if preview or file.suffix not in SUFFIXES:
            continue
        with Image.open(file) as image:
            width, height = image.size
        name = photograph_of(file)
        if min(width, height) >= size and width * height > found.get(name, (0, file))[0]:
            found[name] = width * height, file
    return {name: found[name][1] for name in sorted(found)}


def divided(names: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Returns the photographs of each split; those that are known go to ``test``."""
    drawn = [name for name in names if name not in DRAWINGS and name not in KNOWN]
    order = [drawn[i] for i in np.random.default_rng(seed).permutation(len(drawn))]
    tested, judged = (round(share * len(order)) for share in SHARES.values())
    return {
        "train": sorted([*order[tested + judged :], *(n for n in names if n in DRAWINGS)]),
        "val": sorted(order[tested : tested + judged]),
        "test": sorted([*order[:tested], *(n for n in names if n in KNOWN)]),
    }


def crop(image: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """Returns a random square of a picture at one size: all of its height, or down to ``size``.

    Args:
        image: The picture, in RGB.
        size: Rows and columns of the crop.
        random: Draws side and place.
    """
    for _ in range(20):
        side = int(random.integers(size, min(image.size) + 1))
        left, top = (int(random.integers(0, length - side + 1)) for length in image.size)
        found = image.resize(
            (size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
        )
        if np.asarray(found.convert("L")).std() >= FLAT:
            break
    return found


def write_crops(
    out: Path, photographs: Mapping[str, Path], size: int, count: int, seed: int
) -> None:
    """Writes ``train``, ``val`` and ``test``: crops ``PHOTOGRAPH/NUMBER.jpg``.

    Args:
        out: The folder.
        photographs: Files by the photograph's name.
        size: Rows and columns of a crop.
        count: Crops of every photograph.
        seed: Decides splits and crops.
    """
    for split, names in divided(list(photographs), seed).items():
        for number, name in enumerate(names):
            random = np.random.default_rng([seed, len(split), number])
            image, folder = read_image(photographs[name]), out / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                crop(image, size, random).save(folder / f"{i:03}.jpg", quality=95)
        print(f"{split}: {count} crops of each of {len(names)}: {', '.join(names)}")


def main() -> int:
    """Makes weights and images."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    add = parser.add_argument
    add("--weights", type=Path, required=True, metavar="FILE", help="efficientnet-lite0-*.pth")
    add("--photographs", type=Path, required=True, nargs="+", metavar="DIR")
    add("--out", type=Path, default=Path("runs/lite0"), metavar="DIR")
    add("--size", type=int, default=224, help="rows and columns of a crop")
    add("--crops", type=int, default=24, help="of every photograph")
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        weights = options.out / "weights.safetensors"
        save_file(renamed(read_weights(options.weights)), weights)
        photographs = photographs_in(options.photographs, options.size)
        check(load_network(MODEL, str(weights)), photographs)
        write_crops(options.out, photographs, options.size, options.crops, options.seed)
    except LayerMergeError as error:
        print(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
