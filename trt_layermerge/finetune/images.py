"""From image files to pixels of one size, whatever a camera or a program wrote into them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trt_layermerge.errors import CorruptInputError

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"}
)
DECODERS = 4
"""Threads that decode the images of one batch."""

GAP = 2.0
"""A JPEG is decoded at a fraction of its size if that is still this many times what is needed."""

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Pixels: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class Framing:
    """How an image of any size becomes one of ``size``.

    The shorter side is resized to ``size / crop_pct`` (each axis its own where ``size`` is no
    square), and the centre is cut out.

    Attributes:
        size: Rows and columns of the input.
        crop_pct: Share of the resized image that is kept, per axis, in (0, 1].
        interpolation: How pixels are resized; each averages over what it covers.
    """

    size: tuple[int, int]
    crop_pct: float = 1.0
    interpolation: Interpolation = "bilinear"


def images_below(folder: Path) -> Iterator[Path]:
    """Yields the image files below a folder, in alphabetical order, hidden ones left out."""
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.suffix.lower() in SUFFIXES and not hidden and file.is_file():
            yield file


def decode_all(contents: Sequence[tuple[Path, bytes | None]], framing: Framing) -> Pixels:
    """Returns RGB pixels ``(N, H, W, 3)`` of files; those without content are read.

    Raises:
        CorruptInputError: If one cannot be decoded; it is named.
    """
    with ThreadPoolExecutor(DECODERS) as pool:
        return np.stack(list(pool.map(lambda item: decode(item[0], item[1], framing), contents)))


def decode(path: Path, content: bytes | None, framing: Framing) -> Pixels:
    """Returns the pixels ``(H, W, 3)`` of one file, upright as its EXIF orientation says.

    Grey images of 16 bits keep their upper 8; transparency is dropped; CMYK becomes RGB without
    colour management; of an animation, the first frame counts.

    Raises:
        CorruptInputError: If it cannot be decoded, or its pixels are 32-bit numbers.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            rows, columns = (round(s / framing.crop_pct) for s in framing.size)
            largest = int(max(rows, columns) * GAP)
            image.draft("RGB", (largest, largest))  # the shorter side stays as large as that
            rgb = _rgb(ImageOps.exif_transpose(image))
            method = Image.Resampling[framing.interpolation.upper()]
            # fit() scales until the frame is covered, then crops the centre.
            fitted = ImageOps.fit(rgb, (columns, rows), method)
            return _centre(np.asarray(fitted, dtype=np.uint8), framing.size)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise CorruptInputError(
            f"the image {path} cannot be used: {error}; make the file again, or take it out"
        ) from error


def _rgb(image: Any) -> Any:
    """Returns an image in RGB. Raises ``ValueError`` where that would take a guess."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        upper = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(upper).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers, whose range is not known")
    if image.mode == "P":
        image = image.convert("RGBA")
    return image.convert("RGB")


def _centre(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    top, left = ((have - want) // 2 for have, want in zip(pixels.shape[:2], size, strict=True))
    return pixels[top : top + size[0], left : left + size[1]]
