"""Readers of images: an npz archive, and a Dataset of the user's own."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trt_layermerge.core.agreement import VOID
from trt_layermerge.core.inputs import batch, split
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.core.pyfile import function_of
from trt_layermerge.errors import (
    CorruptInputError,
    UntrustedInputError,
    UsageError,
    foreign,
)

MOST_UNPACKED = 50
"""How much larger than its file an archive may be; photographs shrink to a half at best."""

SMALL_BYTES = 256 * 2**20


@dataclass(frozen=True)
class ArrayData:
    """Images held in memory as bytes ``(N, C, H, W)``, normalised when asked for."""

    stored: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.labels is not None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the inputs."""
        rows, columns = self.stored.shape[2:]
        return rows, columns

    def image(self, index: int) -> Tensor:
        """Returns the bytes ``(C, H, W)`` of an image."""
        return self.stored[index]

    pixels = image

    def inputs(self, pixels: Tensor) -> Tensor:
        """Returns inputs of bytes ``(…, C, H, W)``."""
        return normalised(pixels, self.preprocess)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns images, bit-equal to ``Preprocess``, and labels."""
        labels = None if self.labels is None else self.labels[indices]
        return self.inputs(self.stored[indices]), labels


def normalised(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Returns inputs, bit-equal to ``Preprocess``, of bytes ``(…, C, H, W)``."""
    mean, std = (
        torch.tensor(v, dtype=torch.float32)[:, None, None]
        for v in (preprocess.mean, preprocess.std)
    )
    return pixels.float().mul_(torch.tensor(preprocess.scale)).sub_(mean).div_(std)


@dataclass(frozen=True)
class DatasetData:
    """A torch Dataset of normalised images, or of several inputs, and labels."""

    dataset: Any
    name: str
    class_names: tuple[str, ...]
    numbers: tuple[int, ...] | None = None
    """What each of the Dataset's labels is called instead, or None: as it is."""
    inputs: tuple[str, ...] = ("input",)
    """What the network's inputs are called."""
    has_labels: bool = True

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def labelled(self) -> bool:
        """Whether items are pairs of inputs and labels."""
        return self.has_labels

    def batch(self, indices: Tensor) -> tuple[Any, Tensor | None]:
        """Returns images, or several inputs, and labels: ``(n,)``, of every pixel, or None.

        Raises:
            CorruptInputError: If an item's first input is no float image ``(C, H, W)``, its label
                no integer or integers, an input is missing, or the items differ in shape.
        """
        with _items_of(self.name):
            items = [split(self.dataset[i], self.inputs) for i in indices.tolist()]
            self._check_count([part for part in items[0][0] if part is not None])
            columns = zip(*(parts for parts, _ in items), strict=True)
            inputs = [torch.stack([torch.as_tensor(part) for part in c]) for c in columns]
            labels = self._labels([label for _, label in items]) if self.has_labels else None
        images = inputs[0]
        if images.ndim != 4 or not images.is_floating_point():
            raise CorruptInputError(
                f"{self.name} gives images {tuple(images.shape[1:])} {images.dtype}; they must "
                "be normalised float tensors (C, H, W)"
            )
        return batch([x.float() if x.is_floating_point() else x for x in inputs]), labels

    def _check_count(self, parts: list[Any]) -> None:
        if len(parts) != len(self.inputs):
            raise CorruptInputError(
                f"{self.name} gives {len(parts)} of the {len(self.inputs)} inputs that the network "
                f"takes ({', '.join(self.inputs)}); let an item be a pair of a tuple or dict of "
                "these, and a label or None"
            )

    def _labels(self, given: list[Any]) -> Tensor:
        labels = torch.stack([torch.as_tensor(label) for label in given])
        if labels.ndim == 1:
            labels = torch.tensor([int(label) for label in given])
        elif labels.is_floating_point():
            raise TypeError(f"labels {tuple(labels.shape[1:])} are {labels.dtype}, not integers")
        labels = labels.long()
        return labels if self.numbers is None else renumbered(labels, self.numbers, self.name)


def renumbered(labels: Tensor, numbers: Sequence[int], name: str) -> Tensor:
    """Returns labels by other numbers; pixels of no class stay so.

    Args:
        labels: ``(N,)``, or ``(N, H, W)``.
        numbers: What each label is called instead.
        name: Where they come from.

    Raises:
        CorruptInputError: If a label has no number.
    """
    void = (labels == VOID) & (labels.ndim > 1)
    known = labels.masked_fill(void, 0)
    if not 0 <= int(known.min()) <= int(known.max()) < len(numbers):
        raise CorruptInputError(
            f"{name} gives labels from {known.min()} to {known.max()}, but names {len(numbers)} "
            "classes; name every class"
        )
    return torch.tensor(numbers)[known].masked_fill(void, VOID)


def read_npz(path: Path, preprocess: Preprocess) -> ArrayData:
    """Returns the images of an npz archive, kept in memory as bytes.

    An archive of nothing but ``images`` has no labels.

    Raises:
        UsageError: If there is no such file, or ``preprocess`` is for other channels.
        CorruptInputError: If it is damaged, empty, or its arrays do not fit together.
        UntrustedInputError: If it holds pickled objects.
    """
    with (
        _npz_errors(path),
        path.open("rb") as file,
        _bounded(file),
        np.load(file, allow_pickle=False) as archive,
    ):
        images, alone = archive["images"], archive.files == ["images"]
        labels = None if alone else archive["labels"]
        names = archive.get("class_names")
        if any(isinstance(member, bytes) for member in (images, labels, names)):
            raise ValueError("a member of it is no array")
    if images.size == 0:
        raise _malformed(path, "it holds no images")
    if images.dtype != np.uint8 or images.ndim != 4:
        raise _malformed(path, f"images are {images.dtype} {images.shape}, not uint8 (N, H, W, C)")
    if labels is not None and (
        labels.dtype.kind not in "iu" or labels.shape not in (images.shape[:1], images.shape[:3])
    ):
        raise _malformed(
            path, f"labels are {labels.dtype} {labels.shape}, not integers (N,) or (N, H, W)"
        )
    if images.shape[3] != len(preprocess.mean) or len(preprocess.std) != len(preprocess.mean):
        raise UsageError(
            f"{path} has images of {images.shape[3]} channels, but the preprocessing gives "
            f"{len(preprocess.mean)} means and {len(preprocess.std)} deviations; give one each"
        )
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    if labels is None:
        return ArrayData(pixels, None, (), preprocess)
    class_names = _class_names(path, names, labels)
    return ArrayData(pixels, torch.from_numpy(labels.astype(np.int64)), class_names, preprocess)


@contextmanager
def _bounded(file: IO[bytes]) -> Iterator[None]:
    """Passes an archive whose arrays are not far larger than its file; others are not unpacked."""
    held = file.seek(0, 2)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
        if claimed > (limit := MOST_UNPACKED * held + SMALL_BYTES):
            raise ValueError(
                f"a file of {held:,} bytes says that it holds {claimed:,}, and up to {limit:,} are "
                "read; save it without compression (numpy.savez)"
            )
    file.seek(0)
    if file.read(6) == b"\x93NUMPY":
        raise ValueError("it is one array, not an archive of several; save it with numpy.savez")
    file.seek(0)
    yield


def _class_names(path: Path, names: NDArray[Any] | None, labels: NDArray[Any]) -> tuple[str, ...]:
    """Returns the given names, or the numbers, of all classes."""
    known = (labels if labels.ndim == 1 else labels[labels != VOID]).astype(np.int64)
    count = int(known.max(initial=-1)) + 1
    if names is not None and (names.dtype.kind != "U" or names.ndim != 1):
        raise _malformed(path, f"class_names are {names.dtype} {names.shape}, not strings (K,)")
    found = tuple(str(n) for n in (np.arange(min(count, 10**6)) if names is None else names))
    if known.min(initial=0) < 0 or count > len(found):
        raise _malformed(
            path, f"labels run from {known.min()} to {count - 1} with {len(found)} class names"
        )
    return found


@contextmanager
def _npz_errors(path: Path) -> Iterator[None]:
    """Turns what numpy and zipfile raise into our errors."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}; check the name after npz:")
    with foreign(lambda why: _malformed(path, why)):
        try:
            yield
        except KeyError as error:
            raise _malformed(
                path, f"it must hold the arrays images and labels, or images alone ({error})"
            ) from error
        except pickle.UnpicklingError as error:
            raise _untrusted(path) from error
        except ValueError as error:
            # numpy tells its refusal of pickles from damage in words only.
            if "allow_pickle" in str(error):
                raise _untrusted(path) from error
            raise


def _items_of(name: str) -> AbstractContextManager[None]:
    """Turns what reading items of a Dataset raises into our error."""
    return foreign(
        lambda why: CorruptInputError(
            f"{name} must give pairs of an image tensor and a label, all images of one shape, for "
            f"every number below its length: {why}"
        )
    )


def read_dataset(file: Path, factory: str, inputs: tuple[str, ...] = ("input",)) -> DatasetData:
    """Returns the Dataset that a function in a Python file makes. Runs that file.

    Args:
        file: The Python file.
        factory: Name of the function, which is called without arguments.
        inputs: What the network's inputs are called.

    Raises:
        UsageError: If file or function is missing, or what it returns is no Dataset with a length.
    """
    name = f"{file}:{factory}"
    make = function_of(file, factory)
    with foreign(
        lambda why: UsageError(
            f"{name} gave no Dataset with a length ({why}); {factory}() must return one"
        )
    ):
        dataset = make()
        count = len(dataset)
        classes = tuple(str(c) for c in getattr(dataset, "classes", ()))
    if count < 1:
        raise UsageError(f"the Dataset of {name} is empty")
    with _items_of(name):
        labelled = split(dataset[0], inputs)[1] is not None
    return DatasetData(dataset, name, classes, inputs=inputs, has_labels=labelled)


def _malformed(path: Path, why: str) -> CorruptInputError:
    return CorruptInputError(f"{path} cannot be used: {why}; make the file again")


def _untrusted(path: Path) -> UntrustedInputError:
    return UntrustedInputError(
        f"{path} holds pickled objects, which could run code when loaded; save plain arrays with "
        "numpy.savez"
    )
