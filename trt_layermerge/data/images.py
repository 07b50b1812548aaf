"""Image files: which there are, and their pixels, whatever a camera wrote into them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from trt_layermerge.errors import CorruptInputError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"}
)
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
"""What is decoded, whatever a file is called: others start programs (EPS) or are hardly tested."""

GAP = 2.0
"""A JPEG is decoded at a fraction of its size if that is still this many times what is needed."""

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class Framing:
    """How an image of any size becomes one of ``size``.

    It is resized to cover ``size / crop_pct``, keeping its aspect (for a square: its shorter side
    becomes that long), and the centre is cut out: torchvision's ``Resize`` and ``CenterCrop``.

    Attributes:
        size: Rows and columns of the input.
        crop_pct: Share of the resized image that is kept, per axis, in (0, 1].
        interpolation: How pixels are resized; each averages over what it covers.
    """

    size: tuple[int, int]
    crop_pct: float = 1.0
    interpolation: Interpolation = "bilinear"

    @property
    def covered(self) -> tuple[int, int]:
        """Rows and columns that the resized image covers."""
        rows, columns = (round(side / self.crop_pct) for side in self.size)
        return rows, columns


def is_image(file: Path, folder: Path) -> bool:
    """Whether a path below a folder is that of an image, and not hidden."""
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in SUFFIXES and not hidden and file.is_file()


def images_below(folder: Path) -> Iterator[Path]:
    """Yields the image files below a folder, in alphabetical order, hidden ones left out."""
    return (file for file in sorted(folder.rglob("*")) if is_image(file, folder))


def read_image(path: Path, content: bytes | None = None, needed: int | None = None) -> Image:
    """Returns an image in RGB, upright as its EXIF orientation says.

    Grey images of 16 bits keep their upper 8; transparency is dropped; CMYK becomes RGB without
    colour management; of an animation, the first frame counts.

    Args:
        path: The file.
        content: Its bytes; None to read them.
        needed: Pixels per axis that are enough: a JPEG of more than ``GAP`` times that is decoded
            at a half, a quarter or an eighth of its size. None for the whole image.

    Raises:
        CorruptInputError: If it cannot be decoded, or its pixels are 32-bit numbers.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path if content is None else io.BytesIO(content), "r", FORMATS) as image:
            if needed is not None:
                image.draft("RGB", (int(needed * GAP),) * 2)  # the shorter side is at least that
            return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise CorruptInputError(
            f"the image {path} is damaged, or of a kind that is not read (a TIFF file of floats, "
            "say); save it as PNG or JPEG with 8 bits a channel, or take it out"
        ) from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise CorruptInputError(
            f"the image {path} cannot be used: {error}; make the file again, or take it out"
        ) from error


def _rgb(image: Any) -> Image:
    """Returns an image in RGB. Raises ``ValueError`` where that would take a guess."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        upper = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(upper).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers, whose range is not known")
    if image.mode == "P":
        image = image.convert("RGBA")
    rgb: Image.Image = image.convert("RGB")
    return rgb
