"""``manifest.json``: the hash of every file of a bundle, and all that is no file of its own."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from trt_layermerge.core.codec import Finite, dump, load
from trt_layermerge.core.device import PRECISIONS
from trt_layermerge.core.jsonio import Json, read_json, schema_name, sha256_bytes
from trt_layermerge.deploy.bundle.contents import (
    TOLERANCES,
    Contents,
    Engine,
    Facts,
    Files,
    Samples,
    Target,
)
from trt_layermerge.deploy.sidecar import Sidecar
from trt_layermerge.errors import CorruptInputError

NAME = "manifest.json"
KIND = "bundle"
AGAIN = (
    "take the bundle again from where it was made, or make it again: "
    "trt-layermerge package --run NAME"
)


class Speed(TypedDict):
    """How fast the network is at one precision."""

    original_ms: Finite
    merged_ms: Finite
    speedup: Finite
    device: str


@dataclass(frozen=True, kw_only=True)
class Manifest(Facts):
    """What stands in the file.

    Attributes:
        target: What the bundle is for.
        tolerance: What ``verify.py`` lets pass.
        samples: Where the inputs of the samples are from, in words.
        roles: Path of every part by its role.
        files: SHA-256 of every other file by path.
    """

    latency: Mapping[str, Speed]
    target: Target
    tolerance: Finite
    samples: str
    roles: Mapping[str, str]
    files: Mapping[str, str]


def manifest(contents: Contents, target: Target, places: Mapping[str, str], files: Files) -> bytes:
    """Returns the text of ``manifest.json``.

    Args:
        contents: What is bundled.
        target: For what.
        places: Path of every part by its role.
        files: All other files of the bundle.
    """
    body = Manifest(
        **_facts(contents),
        target=target,
        tolerance=TOLERANCES[contents.precision],
        samples=contents.samples.source,
        roles=places,
        files={path: sha256_bytes(data) for path, data in sorted(files.items())},
    )
    return json.dumps({"schema": schema_name(KIND), **dump(body)}, indent=1).encode() + b"\n"


def read(path: Path) -> Json:
    """Returns what stands in a manifest.

    Raises:
        UsageError: If there is none.
        CorruptInputError: If it is damaged, or of another version.
    """
    try:
        return read_json(path, KIND)
    except CorruptInputError as error:
        raise CorruptInputError(
            f"{path} is damaged, or of another version of trt-layermerge; {AGAIN}"
        ) from error


def contents_of(path: Path, body: Json, files: Files) -> tuple[Target, Contents]:
    """Returns what a bundle is for and what it holds: the inverse of rendering it.

    Args:
        path: Where the manifest lies, for messages.
        body: The manifest.
        files: The files that it names, by path, checked.

    Raises:
        CorruptInputError: If a field is missing or malformed.
    """
    with unreadable(path):
        given = load(Manifest, body)
        part = {role: files[place] for role, place in given.roles.items()}
        arrays = np.load(io.BytesIO(part["expected"]), allow_pickle=False)
        models = {p: part.get(f"onnx.{p}") for p in PRECISIONS} | {given.precision: part["onnx"]}
        outputs = {p: arrays[f"output_{p}"] for p in PRECISIONS if f"output_{p}" in arrays}
        return given.target, Contents(
            **_facts(given),
            models={p: model for p, model in models.items() if model is not None},
            portable=part.get("portable"),
            engine=_engine(part),
            samples=Samples(arrays["input"], outputs, given.samples),
            recipe=part["recipe"].decode(),
            calibration=part["calibration"].decode() if "calibration" in part else None,
        )


def _facts(of: Facts) -> dict[str, Any]:
    return {f.name: getattr(of, f.name) for f in fields(Facts)}


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Turns the errors of reading malformed fields into one clear refusal.

    Raises:
        CorruptInputError: In place of the errors that a missing or malformed field causes.
    """
    try:
        yield
    except (
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
    ) as error:
        raise CorruptInputError(
            f"{path} is damaged: a field is missing or malformed ({error}); {AGAIN}"
        ) from error


def _engine(part: Files) -> Engine | None:
    if "engine" not in part:
        return None
    return Engine(part["engine"], Sidecar.from_json(json.loads(part["sidecar"])))
