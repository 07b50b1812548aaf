"""What the runs in a folder have come to: read from their files, and nothing is done or written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from trt_layermerge.core.jsonio import Json, read_json, sha256_file
from trt_layermerge.errors import LayerMergeError, UsageError, command
from trt_layermerge.pipeline.api import stage
from trt_layermerge.pipeline.folder import (
    RECIPE,
    RunFolder,
    failure_of,
    names_in,
    no_run,
    other_settings,
    records_of,
)
from trt_layermerge.pipeline.options import PACKAGE, STAGES, NullReporter
from trt_layermerge.pipeline.recipe import load_recipe
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.stage import code_hash, hashes_of

State: TypeAlias = Literal["done", "stale", "failed", "to do"]


def runs_in(runs_dir: Path) -> Json:
    """Returns a row for every run in a folder: its network, how far it is, and what it came to.

    A run that cannot be read is told as one.

    Args:
        runs_dir: The folder; one that does not exist has no runs.
    """
    rows = []
    for name in names_in(runs_dir):
        try:
            found = status_of(RunFolder(runs_dir / name))
            rows.append({key: value for key, value in found.items() if key != "stages"})
        except LayerMergeError as error:
            rows.append({"run": name, "verdict": f"cannot be read: {error}"})
    return {"folder": str(runs_dir.absolute()), "runs": rows}


def status_of(folder: RunFolder) -> Json:
    """Returns the stages of a run, each done, stale, failed or to do, and what to type next.

    A stage is stale where ``run`` would do it again: what it reads, its settings, the files that
    these name, or the program are others by now. Whether another machine would is not looked at.

    Raises:
        UsageError: If there is no such run.
        CorruptInputError: If its recipe is not as it was written.
    """
    if not (folder / RECIPE).is_file():
        raise UsageError(f"{no_run(folder)}; to see all runs: trt-layermerge runs --runs-dir DIR")
    recipe = load_recipe(folder / RECIPE, {}, remembered=True)
    run = Run(recipe, folder, NullReporter())
    rows = list(_rows(run))
    done = [row["stage"] for row in rows if row["state"] == "done"]
    open_ones = [row for row in rows if row["state"] != "done"]
    return {
        "run": folder.root.name,
        "folder": str(folder.root.absolute()),
        "network": recipe.model.name,
        "reached": done[-1] if done else None,
        **(_figures(folder) if STAGES[-1] in done else {}),
        "verdict": _verdict(open_ones),
        "next": _next(folder, open_ones, done),
        "stages": rows,
    }


def _rows(run: Run) -> Iterator[Json]:
    """Yields stage, state, seconds and reason of every stage, in order."""
    records, failure = records_of(run.folder), failure_of(run.folder)
    names = [*STAGES, *([PACKAGE] if run.recipe.package.targets or PACKAGE in records else [])]
    makers = {file: name for name in records for file in records[name]["outputs"]}
    stale: set[str] = set()
    for name in names:
        record = records.get(name)
        seconds = None if record is None else record["seconds"]
        state: State = "to do" if record is None else "done"
        why = None
        if record is not None:
            behind = [makers[file] for file in record["reads"] if makers.get(file) in stale]
            why = f"{behind[0]} is stale" if behind else _changed(run, name, record)
            state = "done" if why is None else "stale"
        if state == "stale":
            stale.add(name)
        if state == "done":
            failed = _exceeded(run, name)
        else:
            failed = failure["error"] if failure.get("stage") == name else None
        if failed is not None:
            state, why = "failed", failed
        yield {"stage": name, "state": state, "seconds": seconds, "why": why}


def _changed(run: Run, name: str, record: Mapping[str, Any]) -> str | None:
    """Returns why what a stage left would be made again, or None."""
    for file, digest in {**record["reads"], **record["outputs"]}.items():
        path = run.folder / file
        if not path.is_file():
            return f"{file} is gone"
        if sha256_file(path) != digest:
            return f"{file} is not what it was then"
    try:
        others = other_settings(run.folder, name, hashes_of(stage(name).settings(run)))
    except LayerMergeError as error:
        return str(error)
    if others:
        return f"other settings or files by now: {', '.join(others)}"
    if record["code"] not in (None, code_hash()):
        return "done by another version of this program"
    return None


def _exceeded(run: Run, name: str) -> str | None:
    """Returns which limit the outcome of a stage exceeds, or None."""
    try:
        stage(name).gate(run)
    except LayerMergeError as error:
        return str(error)
    return None


def _figures(folder: RunFolder) -> Json:
    """Returns what a finished run gained and what it cost."""
    summary = read_json(folder / "summary.json", "summary")
    before, after = (summary[side]["accuracy"] for side in ("original", "merged"))
    known = before is not None and after is not None
    return {
        "speedup": summary["speedup"],
        "accuracy_drop": before - after if known else None,
        "agreement": summary.get("agreement"),
    }


def _next(folder: RunFolder, left: list[Json], done: list[str]) -> str | None:
    """Returns what to type next, if there is anything left to do."""
    if left:
        return command("run", folder.root)
    return None if PACKAGE in done else command("package", folder.root, "--for", "plain")


def _verdict(left: list[Json]) -> str:
    """Returns in a few words whether a run is finished, and if not, what is the matter."""
    for state, words in (("failed", "failed in {}"), ("stale", "out of date from {}")):
        for row in left:
            if row["state"] == state:
                return words.format(row["stage"])
    return f"not finished: {left[0]['stage']} comes next" if left else "finished, within its limits"
