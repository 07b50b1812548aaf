"""Names of data, such as ``npz:FILE``: what each means, and which files it points to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os.path import normpath
from pathlib import Path
from typing import Literal, TypeAlias, get_args
from urllib.parse import parse_qsl

from trt_layermerge.errors import UsageError

Kind: TypeAlias = Literal["npz", "imagefolder", "images", "hf", "python"]
FORMS = (
    "npz:FILE, imagefolder:DIR, imagefolder:DIR?list=FILE, imagefolder:DIR?without=FILE, "
    "images:DIR, hf:DIR?split=NAME or FILE.py:FACTORY"
)


@dataclass(frozen=True)
class DataName:
    """A parsed name.

    Attributes:
        kind: Which reader it is for.
        path: The file or folder.
        listed: List of the only images that count.
        without: List of images that do not count.
        factory: Function of a Python file.
        split: Part of a saved dataset.
    """

    kind: Kind
    path: Path
    listed: Path | None = None
    without: Path | None = None
    factory: str = ""
    split: str | None = None

    def __str__(self) -> str:
        if self.kind == "python":
            return f"{self.path}:{self.factory}"
        options = (("list", self.listed), ("without", self.without), ("split", self.split))
        query = "&".join(f"{key}={value}" for key, value in options if value is not None)
        return f"{self.kind}:{self.path}" + (f"?{query}" if query else "")

    def below(self, folder: Path) -> DataName:
        """Returns the same with its paths, if relative, below a folder."""

        def full(path: Path | None) -> Path | None:
            return None if path is None else Path(normpath(folder / path))

        path = Path(normpath(folder / self.path))
        return replace(self, path=path, listed=full(self.listed), without=full(self.without))


def parse_name(source: str) -> DataName:
    """Returns what a name stands for; nothing is looked up.

    Raises:
        UsageError: If it is not understood.
    """
    kind, _, rest = source.partition(":")
    file, _, factory = source.rpartition(":")
    if file.endswith(".py") and factory:
        return DataName("python", Path(file), factory=factory)
    if kind not in get_args(Kind) or kind == "python" or not rest:
        raise UsageError(f"{source!r} names no data; type {FORMS}")
    if kind in ("npz", "images"):
        return DataName("npz" if kind == "npz" else "images", Path(rest))
    path, asked, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    allowed = {"split"} if kind == "hf" else {"list", "without"}
    known = options.keys() <= allowed and all(options.values())
    if len(options) != bool(asked) or not known or not path:
        raise UsageError(f"{source!r} is not understood; type {FORMS}")
    if kind == "hf":
        return DataName("hf", Path(path), split=options.get("split"))
    listed, without = (Path(options[k]) if options.get(k) else None for k in ("list", "without"))
    return DataName("imagefolder", Path(path), listed, without)
