"""Datasets of Hugging Face's library that lie in a local folder (``save_to_disk``)."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.data.folders import EncodedData
from trt_layermerge.data.images import Framing
from trt_layermerge.errors import CorruptInputError, MissingDependencyError, UsageError


@dataclass(frozen=True)
class RowData(EncodedData):
    """Rows of a dataset, ``name``, with an image as bytes in a ``column`` and, perhaps, a label.

    Images are decoded as files are.
    """

    rows: Any = None
    column: str = ""
    name: Path = Path()

    def __len__(self) -> int:
        return len(self.rows)

    def content(self, index: int) -> tuple[Path, bytes | None]:
        """Returns what to call an image, and its bytes where the dataset holds them."""
        cell = self.rows[index][self.column]
        return Path(cell["path"] or f"{self.name}, row {index}"), cell["bytes"]


def read_saved(
    path: Path, split: str | None, preprocess: Preprocess, framing: Framing | None
) -> RowData:
    """Returns the images of a saved dataset; its only column of images and of class labels count.

    Args:
        path: The folder that ``save_to_disk`` wrote.
        split: Which of its parts; None where it has none.
        preprocess: From pixels to inputs.
        framing: From images to pixels of one size; None is refused.

    Raises:
        MissingDependencyError: If ``datasets`` is not installed.
        UsageError: If there is no such folder or split, no column of images, or no ``framing``.
        CorruptInputError: If the folder holds no saved dataset.
    """
    if framing is None:
        raise UsageError(f"hf:{path} needs the rows and columns of the network's input")
    if not path.is_dir():
        raise UsageError(f"there is no folder {path}; save the dataset there with save_to_disk")
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise MissingDependencyError("datasets", f"hf:{path}", "huggingface") from error
    try:
        found = library.load_from_disk(str(path))
    except Exception as error:  # arrow, json and the file system each have their own
        raise CorruptInputError(f"{path} holds no saved dataset: {error}") from error
    rows = _rows(found, path, split)
    images = [k for k, kind in rows.features.items() if isinstance(kind, library.Image)]
    labels = [k for k, kind in rows.features.items() if isinstance(kind, library.ClassLabel)]
    if len(images) != 1 or len(labels) > 1:
        raise UsageError(
            f"{path} has {len(images)} columns of images and {len(labels)} of class labels; keep "
            "one of images and at most one of labels (select_columns, cast_column)"
        )
    names = tuple(rows.features[labels[0]].names) if labels else ()
    numbers = torch.tensor(list(rows[labels[0]])) if labels else None
    raw = rows.cast_column(images[0], library.Image(decode=False))
    return RowData(numbers, names, preprocess, framing, raw, images[0], path)


def _rows(found: Any, path: Path, split: str | None) -> Any:
    """Returns the rows of a split, or of a dataset without splits."""
    splits = list(found) if isinstance(found, dict) else []
    if split is None and not splits:
        return found
    if split not in splits:
        raise UsageError(
            f"hf:{path} has {'the splits ' + ', '.join(splits) if splits else 'no splits'}; "
            f"type hf:{path}" + (f"?split={splits[0]}" if splits else "")
        )
    return found[split]
