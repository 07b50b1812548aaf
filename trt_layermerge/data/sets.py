"""Images by name, most with labels, and disjoint parts of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from trt_layermerge.core.jsonio import read_small
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.data.images import Framing
from trt_layermerge.data.names import parse_name
from trt_layermerge.data.sources import DatasetData, read_dataset, read_npz, renumbered
from trt_layermerge.errors import UsageError, words_of


@runtime_checkable
class LabelledData(Protocol):
    """Images, ready for the network as evaluation sees them, with labels where ``labelled``."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of every label; empty where the source does not tell."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        ...

    def batch(self, indices: Tensor) -> tuple[Any, Tensor | None]:
        """Returns normalised images ``(n, C, H, W)`` float32 and labels int64, or None.

        Labels are ``(n,)``, or of pixels ``(n, H, W)``; inputs of a Dataset of the user's own may
        be several (``core.inputs``).
        """
        ...


@dataclass(frozen=True)
class Part:
    """Some images of another set, in the order of ``indices``."""

    data: LabelledData
    indices: Tensor

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of every label."""
        return self.data.class_names

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.data.labelled

    def batch(self, indices: Tensor) -> tuple[Any, Tensor | None]:
        """Returns images and labels at positions of this part."""
        return self.data.batch(self.indices[indices])


def open_data(
    source: str,
    preprocess: Preprocess,
    framing: Framing | None = None,
    inputs: tuple[str, ...] = ("input",),
) -> LabelledData:
    """Returns the images that a name stands for.

    Args:
        source: ``npz:FILE`` (``images`` uint8 ``(N, H, W, C)``, ``labels`` integers ``(N,)`` or
            ``(N, H, W)``, optional ``class_names``; or ``images`` alone), ``imagefolder:DIR`` (one
            sub-folder per class), ``imagefolder:DIR?list=FILE`` (only the images of a list) or
            ``?without=FILE`` (all others), ``images:DIR`` (all below it, without labels),
            ``hf:DIR?split=NAME``
            (saved by Hugging Face's datasets) or ``FILE.py:FACTORY`` (called without arguments,
            returns a torch Dataset of normalised float images ``(C, H, W)`` and labels: integers,
            or integers ``(H, W)`` for every pixel).
        preprocess: How 8-bit images become inputs; a Dataset's images are taken as they are.
        framing: How images of folders become those of one size; needed for these alone.
        inputs: What the network's inputs are called; several come from a Dataset alone, whose
            items are pairs of a tuple or dict of them, and a label or None.

    Raises:
        UsageError: If the name is not understood, nothing is there, or it feeds one input of
            several.
        CorruptInputError: If the file is damaged or its arrays have the wrong form.
        UntrustedInputError: If reading it would execute code.
    """
    name = parse_name(source)
    data: LabelledData
    if len(inputs) > 1 and name.kind != "python":
        raise UsageError(
            f"the network takes {len(inputs)} inputs ({', '.join(inputs)}), and {source} feeds "
            "one; give a Dataset of your own (FILE.py:FACTORY), whose items are pairs of a tuple "
            "or dict of these, and a label or None"
        )
    # torchvision takes seconds to import, and arrays need none of it.
    if name.kind == "npz":
        data = read_npz(name.path, preprocess)
    elif name.kind == "python":
        data = read_dataset(name.path, name.factory, inputs)
    elif name.kind == "hf":
        from trt_layermerge.data.hugging_face import read_saved

        data = read_saved(name.path, name.split, preprocess, framing)
    else:
        from trt_layermerge.data.folders import read_folder

        data = read_folder(name, preprocess, framing)
    return data


def draw(data: LabelledData, count: int, seed: int) -> LabelledData:
    """Returns ``count`` images drawn without replacement, in their order; all if there are fewer.

    Args:
        data: Where from.
        count: How many, at least 1.
        seed: Decides which.

    Raises:
        UsageError: If ``count`` is not positive.
    """
    if count < 1:
        raise UsageError(f"{count} images cannot be drawn; ask for at least one")
    if count >= len(data):
        return data
    return Part(data, permutation(len(data), seed)[:count].sort().values)


def split(data: LabelledData, count: int, seed: int) -> tuple[Part, Part]:
    """Returns ``count`` random images, and all the others: two disjoint parts.

    Meant for hold-outs of the *training* images.

    Args:
        data: What is divided.
        count: Images of the first part, from 1 to all but one.
        seed: Decides which.

    Raises:
        UsageError: If either part would be empty.
    """
    if not 0 < count < len(data):
        raise UsageError(
            f"{count} of {len(data)} images cannot be held out with some left on both sides; "
            f"choose a number from 1 to {len(data) - 1}"
        )
    order = permutation(len(data), seed)
    return Part(data, order[:count].sort().values), Part(data, order[count:].sort().values)


def aligned(data: LabelledData, class_names: tuple[str, ...]) -> LabelledData:
    """Returns images with their labels numbered as other images number them, by the names.

    A folder that lacks a class numbers those after it differently. Where one side only counts its
    classes, and the names do not fit, the numbers are taken as they are.

    Args:
        data: The images.
        class_names: Name of every label as the network knows them, such as the training images'.

    Raises:
        UsageError: If a class of the images is none of these, or a name stands for several.
    """
    own = data.class_names
    if not data.labelled or not own or not class_names or own == class_names:
        return data
    unknown = sorted(set(own) - set(class_names))
    if unknown and (_counted(own) or _counted(class_names)):
        return data
    if unknown:
        raise UsageError(
            f"the classes {', '.join(unknown[:5])}{' and more' * (len(unknown) > 5)} are none of "
            f"the {len(class_names)} that the network is trained on ({', '.join(class_names[:5])}, "
            "...); rename them as in data.train (or data.classes), or leave their images out"
        )
    twice = [name for name in own if class_names.count(name) > 1]
    if twice:
        raise UsageError(
            f"{class_names.count(twice[0])} classes are called {twice[0]}, so that the images of "
            "both sets cannot be told apart by name; give every class a name of its own"
        )
    return _numbered(data, tuple(map(class_names.index, own)), class_names)


def class_list(path: Path) -> tuple[str, ...]:
    """Returns the names in a text file, a line each.

    Raises:
        UsageError: If it cannot be read, is no text, or has a name twice or none.
    """
    try:
        names = tuple(filter(None, map(str.strip, read_small(path).decode().splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the list of classes {path} cannot be read ({words_of(error)}); give a text file with "
            "a name a line, in the order of the network's outputs (data.classes)"
        ) from error
    if not names or len(set(names)) < len(names):
        twice = next((name for name in names if names.count(name) > 1), None)
        raise UsageError(
            f"the list of classes {path} has "
            f"{'no name' if twice is None else f'the name {twice} twice'}; give the name of every "
            "class once, a line each, in the order of the network's outputs (data.classes)"
        )
    return names


def _counted(names: tuple[str, ...]) -> bool:
    """Whether names are nothing but the numbers of the classes."""
    return names == tuple(map(str, range(len(names))))


def _numbered(
    data: LabelledData, numbers: tuple[int, ...], class_names: tuple[str, ...]
) -> LabelledData:
    if isinstance(data, Part):
        return replace(data, data=_numbered(data.data, numbers, class_names))
    if isinstance(data, DatasetData):
        return replace(data, class_names=class_names, numbers=numbers)
    known: Any = data  # an archive, a folder or saved rows, which all hold their labels
    return cast(
        LabelledData,
        replace(
            known,
            class_names=class_names,
            labels=renumbered(known.labels, numbers, "the set"),
        ),
    )


def order_note(class_names: tuple[str, ...]) -> str | None:
    """Returns a word about classes that are numbers, whose order others see differently."""
    if _counted(class_names) and list(class_names) != sorted(class_names):
        return (
            f"the names of the {len(class_names)} classes are numbers and are taken in their order "
            "(2 before 10), not alphabetically, as torchvision's ImageFolder takes them"
        )
    return None


def stored(data: LabelledData) -> LabelledData:
    """Returns the set that a part, or a part of parts, is of."""
    while isinstance(data, Part):
        data = data.data
    return data


def held_labels(data: LabelledData) -> Tensor | None:
    """Returns the labels of a set that holds them apart from its images, or None."""
    whole: Any = stored(data)
    found = getattr(whole, "labels", None)
    return found if isinstance(found, Tensor) else None


def permutation(count: int, seed: int) -> Tensor:
    """Returns the numbers below ``count``, shuffled by a seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
