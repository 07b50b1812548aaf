"""Readers of folders of images: classes by sub-folder, chosen by lists, or without labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.errors import UsageError
from trt_layermerge.finetune.images import Framing, decode_all, images_below
from trt_layermerge.finetune.lists import ImageList, Listed, checked_content, read_list
from trt_layermerge.finetune.names import DataName


@dataclass(frozen=True)
class FolderData:
    """Image files, decoded when asked for.

    Attributes:
        files: The files.
        labels: Their classes, or None.
        class_names: Name of every label.
        preprocess: From pixels to inputs.
        framing: From files to pixels.
        listed: What each file must be, where a list says so.
    """

    files: tuple[Path, ...]
    labels: Tensor | None
    class_names: tuple[str, ...]
    preprocess: Preprocess
    framing: Framing
    listed: tuple[Listed, ...] | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.labels is not None

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns images and labels.

        Raises:
            CorruptInputError: If a file cannot be decoded, or is not the one that was listed.
        """
        pixels = decode_all(list(self._contents(indices)), self.framing)
        labels = None if self.labels is None else self.labels[indices]
        return torch.from_numpy(self.preprocess(pixels)), labels

    def _contents(self, indices: Tensor) -> Iterator[tuple[Path, bytes | None]]:
        for i in indices.tolist():
            file = self.files[i]
            yield file, None if self.listed is None else checked_content(file, self.listed[i])


def read_folder(name: DataName, preprocess: Preprocess, framing: Framing | None) -> FolderData:
    """Returns the images that an ``imagefolder:`` or ``images:`` name stands for.

    Sub-folders in alphabetical order are the classes, empty ones too, so that a class keeps its
    number; hidden files and folders do not count.

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
        return FolderData(files, None, (), preprocess, framing)
    if name.listed is not None:
        return _listed(name.path, read_list(name.listed), preprocess, framing)
    classes = sorted(p for p in name.path.iterdir() if p.is_dir() and p.name[0] != ".")
    found = [(f, label) for label, folder in enumerate(classes) for f in images_below(folder)]
    if name.without is not None:
        out = {name.path / image.path for image in read_list(name.without).images}
        found = [(file, label) for file, label in found if file not in out]
    if not found:
        raise UsageError(
            f"{name} has no images in sub-folders; put those of each class into a folder of its "
            f"own, or type images:{name.path} for images without labels"
        )
    chosen, labels = zip(*found, strict=True)
    names = tuple(folder.name for folder in classes)
    return FolderData(chosen, torch.tensor(labels), names, preprocess, framing)


def _listed(
    folder: Path, listed: ImageList, preprocess: Preprocess, framing: Framing
) -> FolderData:
    files = tuple(folder / image.path for image in listed.images)
    labels = torch.from_numpy(np.array([image.label for image in listed.images], np.int64))
    return FolderData(files, labels, listed.classes, preprocess, framing, listed.images)
