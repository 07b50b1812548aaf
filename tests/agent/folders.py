"""Folders of jobs for the tests, written by hand from the contract and not by the exporter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.agent import trouble
from trt_layermerge.core.jsonio import Json, sha256_bytes, sha256_json

ROOT = Path(__file__).parents[2]
SCHEMA = "trt-layermerge/jobs@1"


def model(text: str) -> bytes:
    """Returns the content of a model; the agent's fake backend takes any bytes."""
    return f"model {text}".encode()


def body(folder: Path, jobs: Mapping[str, Sequence[str]], **changes: Any) -> Json:
    """Writes the models of some jobs, named by their texts; returns the manifest without its id."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    listed = []
    for key, texts in jobs.items():
        models = []
        for text in texts:
            file = f"models/{text}.onnx"
            (folder / file).write_bytes(model(text))
            models.append({"file": file, "sha256": sha256_bytes(model(text))})
        listed.append({"key": key, "label": f"label of {key}", "models": models})
    return {
        "schema": SCHEMA,
        "backend": "fake",
        "rounds": 3,
        "burst_ms": 0.5,
        "timeout_s": 20,
        "sentinel": None,
        "sentinel_every": 4,
        "jobs": listed,
        **changes,
    }


def write(folder: Path, manifest: Json) -> Path:
    """Writes a manifest with its id; returns the folder."""
    identity = sha256_json({k: v for k, v in manifest.items() if k != "id"})
    (folder / "manifest.json").write_text(json.dumps({**manifest, "id": identity}))
    return folder


def singles(folder: Path, count: int, **changes: Any) -> Path:
    """Writes a folder of jobs ``k0``, ``k1``, … with one model each."""
    return write(folder, body(folder, {f"k{i}": [f"m{i}"] for i in range(count)}, **changes))


def script(path: Path, **content: Any) -> dict[str, str]:
    """Writes a script of trouble by text of the model; returns the environment that names it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    models = content.pop("models", {})
    hashed = {sha256_bytes(model(text)): happening for text, happening in models.items()}
    path.write_text(json.dumps({"models": hashed, **content}))
    return trouble.environment(path)


def command(*arguments: Any) -> list[str]:
    """Returns the command of the agent out of the package."""
    return [sys.executable, "-m", "trt_layermerge.measure.agent", *map(str, arguments)]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the environment in which the command finds the package."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(extra or {})}


def agent(
    *arguments: Any, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the agent to its end."""
    return subprocess.run(
        command(*arguments),
        env=environment(env),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def rows(folder: Path) -> list[Json]:
    """Returns the rows of the results."""
    lines = (folder / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def table(folder: Path) -> dict[str, Any]:
    """Returns latencies or error by key: of the last good row, or else of the last."""
    found: dict[str, Any] = {}
    for row in rows(folder):
        if row["error"] is None:
            found[row["key"]] = [(m["round_ms"], m["runs_ms"]) for m in row["models"]]
        else:
            found.setdefault(row["key"], row["error"])
    return found
