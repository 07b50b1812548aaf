"""Encoded images: folders with classes by sub-folder, chosen by lists, or without labels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.data.images import Framing, images_below, is_image, read_image
from trt_layermerge.data.lists import Listed, checked_content, read_list
from trt_layermerge.data.names import DataName
from trt_layermerge.data.sources import normalised
from trt_layermerge.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {1: "L", 3: "RGB"}
"""What Pillow calls an image of so many channels."""

DECODERS = 4
"""Threads that decode the images of one batch, where no worker processes do."""


@dataclass(frozen=True)
class EncodedData:
    """Images that are decoded when asked for, in RGB, or in grey where there is one mean.

    Attributes:
        labels: Their classes, or None.
        class_names: Name of every label.
        preprocess: From pixels to inputs.
        framing: From images to pixels of one size.
    """

    labels: Tensor | None
    class_names: tuple[str, ...]
    preprocess: Preprocess
    framing: Framing

    def __post_init__(self) -> None:
        """Refuses what no image file has."""
        if (channels := len(self.preprocess.mean)) not in MODES:
            raise UsageError(
                f"image files have 3 channels or, in grey, 1; for a network of {channels} give "
                "npz:FILE or FILE.py:FACTORY"
            )

    def __len__(self) -> int:
        raise NotImplementedError

    def content(self, index: int) -> tuple[Path, bytes | None]:
        """Returns what to call an image, and its bytes; None to read the file of that name."""
        raise NotImplementedError

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.labels is not None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the inputs."""
        return self.framing.size

    def image(self, index: int) -> Image:
        """Returns an image as large as it is. Raises ``CorruptInputError``."""
        return self._decoded(index)

    def pixels(self, index: int) -> Tensor:
        """Returns an image as evaluation sees it, bytes ``(C, H, W)``.

        Raises:
            CorruptInputError: If it cannot be decoded, or is not the one that was listed.
        """
        return framed(self._decoded(index, max(self.framing.covered)), self.framing)

    def _decoded(self, index: int, needed: int | None = None) -> Image:
        image = read_image(*self.content(index), needed)
        mode = MODES[len(self.preprocess.mean)]
        return image if image.mode == mode else image.convert(mode)

    def inputs(self, pixels: Tensor) -> Tensor:
        """Returns inputs of bytes ``(…, C, H, W)``."""
        return normalised(pixels, self.preprocess)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns images and labels. Raises as ``pixels``."""
        with ThreadPoolExecutor(1 if get_worker_info() else DECODERS) as pool:
            pixels = torch.stack(list(pool.map(self.pixels, indices.tolist())))
        return self.inputs(pixels), None if self.labels is None else self.labels[indices]


def framed(image: Image, framing: Framing) -> Tensor:
    """Returns the bytes ``(C, H, W)`` of an image of any size, as evaluation sees it."""
    (rows, columns), (width, height) = framing.covered, image.size
    if rows * width >= columns * height:
        covering = [rows, max(columns, int(rows * width / height))]
    else:
        covering = [max(rows, int(columns * height / width)), columns]
    resized = F.resize(image, covering, InterpolationMode(framing.interpolation))
    pixels: Tensor = F.pil_to_tensor(F.center_crop(resized, list(framing.size)))
    return pixels


@dataclass(frozen=True)
class FolderData(EncodedData):
    """Image files, and what each must be where a list says so."""

    files: tuple[Path, ...] = ()
    listed: tuple[Listed, ...] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def content(self, index: int) -> tuple[Path, bytes | None]:
        """Returns a file, and its bytes if a list says what they must be."""
        file = self.files[index]
        return file, None if self.listed is None else checked_content(file, self.listed[index])


class VisibleFolder(ImageFolder):  # type: ignore[misc]
    """torchvision's folder of class folders, without hidden ones, where a class may be empty."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder, is_valid_file=lambda file: is_image(Path(file), folder), allow_empty=True
        )

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Returns the names of the classes in order, and their numbers.

        The order is alphabetical, or that of the numbers where all names are numbers.
        """
        found = sorted(p.name for p in Path(directory).iterdir() if p.is_dir())
        classes = [name for name in found if not name.startswith(".")]
        if all(name.isdecimal() for name in classes):
            classes.sort(key=int)
        return classes, {name: number for number, name in enumerate(classes)}


def read_folder(name: DataName, preprocess: Preprocess, framing: Framing | None) -> FolderData:
    """Returns the images that an ``imagefolder:`` or ``images:`` name stands for.

    Args:
        name: What was typed, taken apart; may name a list of images, or one of images left out.
        preprocess: From pixels to inputs.
        framing: From images to pixels of one size; None is refused.

    Raises:
        UsageError: If there is no such folder, no image in it, or no ``framing``.
        CorruptInputError: If a list is damaged.
    """
    if framing is None:
        raise UsageError(f"{name} needs the rows and columns of the network's input")
    if not name.path.is_dir():
        raise UsageError(f"there is no folder {name.path}; check the name after {name.kind}:")
    if name.kind == "images":
        files = tuple(images_below(name.path))
        if not files:
            raise UsageError(f"{name.path} has no images (png, jpg, bmp, webp, ...); name others")
        return FolderData(None, (), preprocess, framing, files)
    if name.listed is not None:
        chosen = read_list(name.listed)
        files = tuple(name.path / image.path for image in chosen.images)
        labels = torch.tensor([image.label for image in chosen.images])
        return FolderData(labels, chosen.classes, preprocess, framing, files, chosen.images)
    folder = VisibleFolder(name.path)
    found = [(Path(file), label) for file, label in folder.samples]
    if name.without is not None:
        out = {name.path / image.path for image in read_list(name.without).images}
        found = [(file, label) for file, label in found if file not in out]
    if not found:
        raise UsageError(
            f"{name} has no images in sub-folders; put those of each class into a folder of its "
            f"own, or type images:{name.path} for images without labels"
        )
    files, numbers = zip(*found, strict=True)
    return FolderData(torch.tensor(numbers), tuple(folder.classes), preprocess, framing, files)
