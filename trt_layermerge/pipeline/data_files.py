"""Which files a data set is made of, so that another one, or a changed one, is noticed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trt_layermerge.core.jsonio import Json, sha256_file, sha256_json
from trt_layermerge.data.images import images_below
from trt_layermerge.data.lists import read_list, refuse_overlap
from trt_layermerge.data.names import DataName, parse_name
from trt_layermerge.errors import UsageError


def data_inputs(source: str | None, classes: str | None = None) -> Json:
    """Returns what tells a data set from another one: its name, and hashes of files.

    Of a folder, names, sizes and times of change count, so that a file that was overwritten is
    noticed without reading a hundred gigabytes; of a list, its own hash, since it holds theirs.

    Args:
        source: Its name; None for no set.
        classes: File of the classes' names, by which its labels are numbered; None for none.

    Raises:
        UsageError: If the name is not understood, or nothing is there.
    """
    if source is None:
        return {"source": None}
    if classes is not None:
        return {**data_inputs(source), "classes": sha256_file(Path(classes))}
    name = parse_name(source)
    if name.kind in ("npz", "python"):
        return {"source": source, "sha256": sha256_file(name.path)}
    lists = {
        key: sha256_file(path)
        for key, path in (("list", name.listed), ("without", name.without))
        if path is not None
    }
    if name.listed is not None:
        return {"source": source, **lists}
    times = [path.stat().st_mtime_ns for path in _images(name)]
    return {"source": source, **lists, **_sizes(name), "times": sha256_json(times)}


def metric_inputs(source: str | None) -> Json:
    """Returns what tells a metric (``FILE.py:FUNCTION``) from another one; nothing where none is.

    Raises:
        UsageError: If the file is not there.
    """
    return {} if source is None else {"metric": data_inputs(source)}


def same_files(first: str | None, second: str | None) -> bool:
    """Whether two names stand for the same files, by hash, or in folders by name and size."""
    if first is None or second is None:
        return False
    names = parse_name(first), parse_name(second)
    if names[0] == names[1]:
        return True
    if any(name.kind == "python" for name in names):
        return False
    return _content(names[0]) == _content(names[1])


def refuse_overlaps(sources: Mapping[str, str | None]) -> None:
    """Checks that the lists of several data sets, by what they are for, have no image in common.

    Raises:
        UsageError: If they have, or a list is missing.
        CorruptInputError: If one is damaged.
    """
    names = {use: parse_name(source) for use, source in sources.items() if source is not None}
    lists = {
        f"{use} ({name.listed})": read_list(name.listed)
        for use, name in names.items()
        if name.listed is not None
    }
    refuse_overlap(lists)


def _content(name: DataName) -> Json:
    if name.kind == "npz":
        return {"sha256": sha256_file(name.path)}
    if name.listed is not None:
        return {"list": sha256_file(name.listed)}
    out = None if name.without is None else sha256_file(name.without)
    return {"without": out, **_sizes(name)}


def _sizes(name: DataName) -> Json:
    found = [[str(p.relative_to(name.path)), p.stat().st_size] for p in _images(name)]
    return {"files": len(found), "sizes": sha256_json(found)}


def _images(name: DataName) -> list[Path]:
    if not name.path.is_dir():
        raise UsageError(f"there is no folder {name.path}; check the name after {name.kind}:")
    if name.kind == "hf":
        return sorted(path for path in name.path.rglob("*") if path.is_file())
    return list(images_below(name.path))
