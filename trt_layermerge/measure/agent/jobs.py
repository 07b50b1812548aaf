"""The folder of jobs that the agent works through, read with suspicion.

``manifest.json`` names every model by file and SHA-256, and itself by the SHA-256 of all the rest.
Models lie in ``models/``; nothing outside the folder is ever opened.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Mapping

from trt_layermerge.core.jsonio import Json, damage, read_json, sha256_bytes, sha256_json
from trt_layermerge.errors import CorruptInputError, UsageError

MANIFEST = "manifest.json"
MOST_JOBS = 100_000
MOST_MODEL_BYTES = 2 << 30
_MOST_ROUNDS, _MOST_SECONDS = 10_000, 7 * 86_400
_FILE = re.compile(r"models/[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.onnx")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelFile:
    """A model by its place in the folder and its content."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        key: What it is called in the results.
        label: What it is, for people.
        models: One model, or two that are timed in turns.
        anew: Whether kernels are chosen anew, not taken from earlier builds: so it is where several
            jobs have the same models, to see what building leaves to luck.
    """

    key: str
    label: str
    models: tuple[ModelFile, ...]
    anew: bool = False


@dataclass(frozen=True)
class Protocol:
    """How every job of a folder is measured.

    Attributes:
        backend: Name of the backend.
        rounds: Bursts of each network, in turns.
        burst_ms: How long a burst lasts.
        timeout_s: Most seconds for one build and timing of one network; then it counts as failed.
        sentinel_every: After so many jobs the sentinel is measured once more.
    """

    backend: str
    rounds: int = 20
    burst_ms: float = 2.0
    timeout_s: float = 600.0
    sentinel_every: int = 20


@dataclass(frozen=True)
class Manifest(Protocol):
    """What is to be measured, and how.

    Attributes:
        id: SHA-256 of everything else.
        sentinel: Key of the job that is measured again and again, to see the device drift.
        jobs: By key, in order.
    """

    id: str = ""
    sentinel: str | None = None
    jobs: Mapping[str, Job] = field(default_factory=dict)


def manifest_id(body: Mapping[str, Any]) -> str:
    """Returns the id of a manifest: the hash of the whole object but its ``id``."""
    return sha256_json({name: value for name, value in body.items() if name != "id"})


def load_manifest(folder: Path) -> Manifest:
    """Returns what a folder asks for; its models are not opened yet.

    Raises:
        UsageError: If there is no folder or no manifest.
        CorruptInputError: If the manifest is damaged, asks for too much, or names a file outside.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(
            f"there is no {MANIFEST} in {folder}; name the folder that "
            "trt-layermerge latency --export-jobs wrote"
        )
    body = read_json(path, "jobs")
    if body.get("id") != manifest_id(body):
        raise CorruptInputError(
            f"{path} was changed after it was written: it does not have the hash that it names; "
            "copy the folder again"
        )
    with damage(path):
        return _manifest(body)


def _manifest(body: Json) -> Manifest:
    """Returns a manifest. Raises ``ValueError`` and ``KeyError`` for what is malformed."""
    listed = body["jobs"]
    if not isinstance(listed, list) or len(listed) > MOST_JOBS:
        raise ValueError(f"jobs must be a list of at most {MOST_JOBS}")
    read = [_job(item) for item in listed]
    often = {models for models, times in Counter(job.models for job in read).items() if times > 1}
    jobs = {j.key: replace(j, anew=j.models in often) for j in read}
    if len(jobs) != len(listed):
        raise ValueError("two jobs have the same key")
    sentinel = body["sentinel"]
    if sentinel is not None and (sentinel not in jobs or len(jobs[sentinel].models) != 1):
        raise ValueError("the sentinel must be a job with one model")
    return Manifest(
        id=body["id"],
        backend=_text(body["backend"]),
        rounds=int(_number(body, "rounds", 1, _MOST_ROUNDS)),
        burst_ms=_number(body, "burst_ms", 0, 60_000),
        timeout_s=_number(body, "timeout_s", 0.01, _MOST_SECONDS),
        sentinel=sentinel,
        sentinel_every=int(_number(body, "sentinel_every", 1, MOST_JOBS)),
        jobs=jobs,
    )


def _job(item: Json) -> Job:
    models = tuple(_model(model) for model in item["models"])
    if len(models) not in (1, 2):
        raise ValueError("a job has one model or two")
    return Job(_text(item["key"]), _text(item["label"]), models)


def _model(item: Json) -> ModelFile:
    file, digest = _text(item["file"]), _text(item["sha256"])
    if not _FILE.fullmatch(file):
        raise ValueError(f"{file!r} is no file of the form models/NAME.onnx")
    if not SHA256.fullmatch(digest):
        raise ValueError(f"{digest!r} is no SHA-256")
    return ModelFile(file, digest)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > 4096:
        raise ValueError(f"{value!r} must be a text")
    return value


def _number(body: Mapping[str, Any], name: str, least: float, most: float) -> float:
    value = body[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number")
    if not (math.isfinite(value) and least <= value <= most):
        raise ValueError(f"{name} is {value}, not between {least} and {most}")
    return float(value)


def read_model(folder: Path, model: ModelFile) -> bytes:
    """Returns the content of a model, the same bytes that were checked.

    Raises:
        CorruptInputError: If it is missing, too large, not in the folder or not what was hashed.
    """
    path = folder / model.file
    again = "copy the folder again, or export the jobs again"
    try:
        resolved = Path(os.path.realpath(path))
        resolved.relative_to(folder.resolve())
        if resolved.exists() and not resolved.is_file():
            raise CorruptInputError(f"{path} is no file; {again}")
        if resolved.stat().st_size > MOST_MODEL_BYTES:
            raise CorruptInputError(f"{path} is larger than {MOST_MODEL_BYTES >> 30} GiB; {again}")
        data = resolved.read_bytes()
    except ValueError as error:
        raise CorruptInputError(f"{path} is a link out of its folder; {again}") from error
    except OSError as error:
        raise CorruptInputError(f"cannot read {path}: {error.strerror}; {again}") from error
    if sha256_bytes(data) != model.sha256:
        raise CorruptInputError(f"{path} is damaged: it has not the hash in {MANIFEST}; {again}")
    return data
