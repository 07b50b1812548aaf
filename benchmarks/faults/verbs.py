"""Verbs typed over a finished run of which one file is damaged."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

from trt_layermerge.cli.main import main
from trt_layermerge.core.jsonio import sha256_file

READS: tuple[tuple[str, str], ...] = (
    ("graph.json", "importance"),
    ("graph.json", "merge"),
    ("candidates.jsonl", "inspect"),
    ("latency_bare.jsonl", "search"),
    ("networks.jsonl", "search"),
    ("latency.jsonl", "importance"),
    ("latency.jsonl", "latency"),
    ("importance.jsonl", "importance"),
    ("importance.jsonl", "search"),
    ("frontier.json", "report"),
    ("finalists.json", "report"),
    ("plan.json", "finetune"),
    ("plan.json", "report"),
    ("finetune.jsonl", "report"),
    ("relaxed.safetensors", "merge"),
    ("repaired.safetensors", "verify"),
    ("merged.safetensors", "export"),
    ("certificate.json", "report"),
    ("export.json", "report"),
    ("model.onnx", "bench"),
    ("original.onnx", "verify"),
    ("calibration.json", "report"),
    ("build.json", "verify"),
    ("bench.json", "report"),
    ("bench.json", "bench"),
    ("verify.json", "report"),
    ("summary.json", "report"),
    ("state.json", "report"),
    ("recipe.yaml", "search"),
)
"""A file, and a verb that reads it or has written it."""

SAME = ("latency.jsonl", "importance.jsonl", "plan.json", "relaxed.safetensors", "summary.json")
"""What a run comes to, whoever damaged it meanwhile."""


def content(run: Path, names: tuple[str, ...] = SAME) -> dict[str, bytes]:
    """Returns the content of a run's files by name; nothing where one is missing."""
    return {n: (run / n).read_bytes() if (run / n).is_file() else b"" for n in names}


def copied(finished: Path, runs: Path) -> Path:
    """Returns the run ``tiny`` below a folder, as it was finished."""
    shutil.rmtree(runs, ignore_errors=True)
    shutil.copytree(finished, runs / "tiny")
    return runs / "tiny"


def note(run: Path, file: str) -> None:
    """Has the run's record of its stages say that a file is as it was written and read."""
    state = run / "state.json"
    if file == state.name:
        return
    body = json.loads(state.read_text())
    for record in body["stages"].values():
        for files in (record["outputs"], record["reads"]):
            if file in files:
                files[file] = sha256_file(run / file)
    state.write_text(json.dumps(body))


def again(verb: str, run: Path) -> None:
    """Has a verb of a sound run done once more.

    Raises:
        RuntimeError: If it fails.
    """
    state = run / "state.json"
    body = json.loads(state.read_text())
    for name in body["stages"].pop(verb)["outputs"]:  # what is there would be continued
        (run / name).unlink()
    state.write_text(json.dumps(body))
    code, said = command(verb, run.parent)
    if code != 0:
        raise RuntimeError(f"{verb} over a sound run fails: {said}")


def command(verb: str, runs: Path) -> tuple[int, str]:
    """Returns the exit code of a verb of the run, and what it said on standard error."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = main([verb, "--run", "tiny", "--runs-dir", str(runs), "-q"])
    return code, err.getvalue()
