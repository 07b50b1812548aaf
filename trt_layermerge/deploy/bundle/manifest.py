"""``manifest.json``: the hash of every file of a bundle, and all that is no file of its own."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from trt_layermerge.core.device import PRECISIONS, Precision
from trt_layermerge.core.jsonio import Json, read_json, schema_name, sha256_bytes
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.deploy.bundle.contents import (
    TARGETS,
    TOLERANCES,
    Baked,
    Contents,
    Engine,
    Files,
    Interface,
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


def manifest(contents: Contents, target: Target, places: Mapping[str, str], files: Files) -> bytes:
    """Returns the text of ``manifest.json``.

    Args:
        contents: What is bundled.
        target: For what.
        places: Path of every part by its role.
        files: All other files of the bundle.
    """
    face = contents.interface
    body = {
        "schema": schema_name(KIND),
        "target": target,
        "name": contents.name,
        "precision": contents.precision,
        "tolerance": TOLERANCES[contents.precision],
        "interface": {**asdict(face), "image": list(face.image)},
        "baked": asdict(contents.baked),
        "preprocess": contents.preprocess.to_json(),
        "labels": None if contents.labels is None else list(contents.labels),
        "samples": contents.samples.source,
        "accuracy": dict(contents.accuracy),
        "latency": {precision: dict(figures) for precision, figures in contents.latency.items()},
        "why_no_engine": contents.why_no_engine,
        "build": dict(contents.build),
        "weights_sha256": contents.weights_sha256,
        "seed": contents.seed,
        "roles": dict(places),
        "files": {path: sha256_bytes(data) for path, data in sorted(files.items())},
    }
    return json.dumps(body, indent=1).encode() + b"\n"


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
        if body["target"] not in TARGETS:
            raise ValueError(f"unknown target {body['target']!r}")
        part = {role: files[place] for role, place in body["roles"].items()}
        arrays = np.load(io.BytesIO(part["expected"]), allow_pickle=False)
        precision = _precision(body["precision"])
        models = {precision: part["onnx"]}
        models |= {p: part[f"onnx.{p}"] for p in PRECISIONS if f"onnx.{p}" in part}
        labels = body["labels"]
        return body["target"], Contents(
            name=str(body["name"]),
            precision=precision,
            models={p: models[p] for p in PRECISIONS if p in models},
            portable=part.get("portable"),
            engine=_engine(part),
            why_no_engine=body["why_no_engine"],
            interface=_interface(body["interface"]),
            baked=Baked(**{k: bool(v) for k, v in body["baked"].items()}),
            preprocess=_preprocess(body["preprocess"]),
            labels=None if labels is None else tuple(map(str, labels)),
            samples=Samples(
                arrays["input"],
                {p: arrays[f"output_{p}"] for p in PRECISIONS if f"output_{p}" in arrays},
                str(body["samples"]),
            ),
            recipe=part["recipe"].decode(),
            build=dict(body["build"]),
            weights_sha256=str(body["weights_sha256"]),
            seed=int(body["seed"]),
            calibration=part["calibration"].decode() if "calibration" in part else None,
            accuracy={str(name): float(share) for name, share in body["accuracy"].items()},
            latency={str(p): _latency(figures) for p, figures in body["latency"].items()},
        )


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


def _precision(value: Any) -> Precision:
    if value not in PRECISIONS:
        raise ValueError(f"unknown precision {value!r}")
    found: Precision = value
    return found


def _engine(part: Files) -> Engine | None:
    if "engine" not in part:
        return None
    return Engine(part["engine"], Sidecar.from_json(json.loads(part["sidecar"])))


def _latency(body: Json) -> Json:
    figures = {name: float(body[name]) for name in ("original_ms", "merged_ms", "speedup")}
    return {**figures, "device": str(body["device"])}


def _interface(body: Json) -> Interface:
    channels, height, width = map(int, body["image"])
    most = body["max_batch"]
    return Interface(
        input=str(body["input"]),
        image=(channels, height, width),
        output=str(body["output"]),
        classes=int(body["classes"]),
        batch=int(body["batch"]),
        max_batch=None if most is None else int(most),
    )


def _preprocess(body: Json) -> Preprocess:
    mean, std = (tuple(map(float, body[name])) for name in ("mean", "std"))
    return Preprocess(float(body["scale"]), mean, std)
