"""Lists of images: which files of a folder, with their labels and hashes, in one text file.

The first line is ``#`` and a JSON object with the schema and the class names; every other line
holds a hash (SHA-256), a size in bytes, a label and a path below the folder, separated by tabs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from trt_layermerge.core.jsonio import (
    MAX_FILE_BYTES,
    read_small,
    schema_name,
    sha256_bytes,
    write_text,
)
from trt_layermerge.errors import CorruptInputError, UsageError

KIND = "images"


@dataclass(frozen=True, slots=True)
class Listed:
    """One image of a list.

    Attributes:
        path: Where it is below the folder, with forward slashes.
        label: Number of its class.
        size: Bytes of the file.
        sha256: Hash of the file.
    """

    path: str
    label: int
    size: int
    sha256: str


@dataclass(frozen=True)
class ImageList:
    """Images of a folder in order, the names of all its classes, and how the images were chosen."""

    classes: tuple[str, ...]
    images: tuple[Listed, ...]
    about: Mapping[str, Any] = field(default_factory=dict)


def write_list(path: Path, listed: ImageList) -> None:
    """Writes a list, whole or not at all. Raises ``DeviceError``."""
    header = {"schema": schema_name(KIND), **listed.about, "classes": listed.classes}
    rows = (f"{i.sha256}\t{i.size}\t{i.label}\t{i.path}" for i in listed.images)
    write_text(path, "\n".join([f"# {json.dumps(header)}", *rows]) + "\n")


def read_list(path: Path) -> ImageList:
    """Returns the list of a file.

    Raises:
        UsageError: If there is no such file.
        CorruptInputError: If it is no list, or a path leads out of the folder.
    """
    try:
        lines = read_small(path, MAX_FILE_BYTES).decode().splitlines()
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no list {path}; check the name after ?list= or ?without="
        ) from (error)
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptInputError(f"the list {path} cannot be read: {error}") from error
    try:
        about = json.loads(lines[0].removeprefix("#"))
        if about.pop("schema") != schema_name(KIND):
            raise ValueError("its schema is another")
        classes = tuple(str(name) for name in about.pop("classes"))
        images = tuple(_listed(line, len(classes)) for line in lines[1:])
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise CorruptInputError(
            f"{path} is no list of images ({error}); write one with "
            "python -m trt_layermerge.data.holdout"
        ) from error
    if not images:
        raise CorruptInputError(f"the list {path} is empty")
    return ImageList(classes, images, about)


def _listed(line: str, classes: int) -> Listed:
    sha256, size, label, path = line.split("\t")
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or not parts:
        raise ValueError(f"{path!r} leads out of the folder")
    if len(sha256) != 64 or not 0 <= int(label) < classes:
        raise ValueError(f"the line of {path} is damaged")
    return Listed(path, int(label), int(size), sha256)


def refuse_overlap(lists: Mapping[str, ImageList]) -> None:
    """Checks that no image, under whatever name, is in two lists.

    Raises:
        UsageError: If one is; the lists and an image are named.
    """
    owners: dict[str, str] = {}
    for name, listed in lists.items():
        for image in listed.images:
            owner = owners.setdefault(image.sha256, name)
            if owner != name:
                raise UsageError(
                    f"{owner} and {name} have images in common, such as {image.path}, so that "
                    "what is measured on one was seen in the other; take lists that one call of "
                    "python -m trt_layermerge.data.holdout wrote"
                )


def checked_content(path: Path, image: Listed) -> bytes:
    """Returns the bytes of a listed file; looks at its size before reading it.

    Raises:
        CorruptInputError: If it is missing, or not the file that was listed.
    """
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size == image.size else b""
    except OSError as error:
        raise CorruptInputError(
            f"the listed image {path} cannot be read: {error.strerror or error}; complete the "
            "folder, or write the list again"
        ) from error
    if size != image.size:
        wrong = f"it has {size} bytes, not {image.size}"
    elif sha256_bytes(content) != image.sha256:
        wrong = "its content has another hash"
    else:
        return content
    raise CorruptInputError(
        f"{path} is not the image that was listed: {wrong}; restore it, or write the list again"
    )
