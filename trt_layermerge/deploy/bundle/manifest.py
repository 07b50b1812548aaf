"""``manifest.json``: the hash of every file of a bundle, and all that is no file of its own."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from trt_layermerge.core.codec import Finite, dump, load
from trt_layermerge.core.device import PRECISIONS
from trt_layermerge.core.jsonio import (
    Json,
    damage,
    read_json,
    schema_name,
    sha256_bytes,
    sha256_json,
)
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

NAME = "manifest.json"
KIND = "bundle"
SELF = "sha256"
"""Where the hash of all the rest of the manifest stands."""

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
    given = Manifest(
        **_facts(contents),
        target=target,
        tolerance=TOLERANCES[contents.precision],
        samples=contents.samples.source,
        roles=places,
        files={path: sha256_bytes(data) for path, data in sorted(files.items())},
    )
    body = {"schema": schema_name(KIND), **dump(given)}
    return json.dumps({**body, SELF: sha256_json(body)}, indent=1).encode() + b"\n"


def read(path: Path) -> Json:
    """Returns what stands in a manifest. Raises ``UsageError`` or ``CorruptInputError``."""
    body = read_json(path, KIND, AGAIN)
    with damage(path, AGAIN):
        if body.pop(SELF, None) != sha256_json(body):
            raise ValueError("its hash is another one than the one in it")
    return body


def contents_of(path: Path, body: Json, files: Files) -> tuple[Target, Contents]:
    """Returns what a bundle is for and what it holds: the inverse of rendering it.

    Args:
        path: Where the manifest lies, for messages.
        body: The manifest.
        files: The files that it names, by path, checked.

    Raises:
        CorruptInputError: If a field is missing or malformed.
    """
    with damage(path, AGAIN):
        given = load(Manifest, body)
        if not 0 < given.tolerance <= max(TOLERANCES.values()):
            raise ValueError(f"it allows a difference of {given.tolerance}")
        if not given.interface.inputs or not given.interface.outputs:
            raise ValueError("it says of no input or no output")
        part = {role: files[place] for role, place in given.roles.items()}
        arrays = _arrays(part["expected"])
        models = {p: part.get(f"onnx.{p}") for p in PRECISIONS} | {given.precision: part["onnx"]}
        face = given.interface
        inputs = tuple(arrays[f"input_{i}"] for i in range(len(face.inputs)))
        outputs = {
            p: tuple(arrays[f"output_{p}_{i}"] for i in range(len(face.outputs)))
            for p in PRECISIONS
            if f"output_{p}_0" in arrays
        }
        return given.target, Contents(
            **_facts(given),
            models={p: model for p, model in models.items() if model is not None},
            portable=part.get("portable"),
            engine=_engine(part),
            samples=Samples(inputs, outputs, given.samples),
            recipe=part["recipe"].decode(),
            calibration=part["calibration"].decode() if "calibration" in part else None,
        )


def _facts(of: Facts) -> dict[str, Any]:
    return {f.name: getattr(of, f.name) for f in fields(Facts)}


def _arrays(data: bytes) -> dict[str, NDArray[Any]]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            found = dict(arrays)
    except (EOFError, zipfile.BadZipFile) as error:
        raise ValueError(str(error)) from error
    if any(isinstance(member, bytes) for member in found.values()):
        raise ValueError("a member of the samples is no array")
    return found


def _engine(part: Files) -> Engine | None:
    if "engine" not in part:
        return None
    return Engine(part["engine"], Sidecar.from_json(json.loads(part["sidecar"])))
