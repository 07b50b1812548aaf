"""What a stage is, and when it has to be done again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import trt_layermerge
from trt_layermerge.core.jsonio import Json, sha256_json
from trt_layermerge.errors import CorruptInputError, UsageError, command, words_of
from trt_layermerge.pipeline.folder import (
    RunFolder,
    is_current,
    other_settings,
    outdated,
    record_failure,
    record_stage,
    refuse_changed,
    sources,
    unfinished,
)
from trt_layermerge.pipeline.run import Run

PACKAGE = Path(trt_layermerge.__file__).parent

REFUSALS = (UsageError, CorruptInputError)
"""What is told again at once when the command is typed again, so nobody has to note it."""


@cache
def code_hash(package: Path = PACKAGE) -> str:
    """Returns a hash of the names and contents of all source files under a folder.

    What a stage makes follows from its code as it does from its inputs, and between two releases
    the version says nothing of it. Read once a process, in some milliseconds.

    Args:
        package: The folder of the package.
    """
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _no_gate(_: Run) -> None:
    """Lets everything pass."""


def _always(_: Run) -> bool:
    """Returns true."""
    return True


def _nothing(_: Run) -> Json:
    """Returns no settings."""
    return {}


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a run.

    Attributes:
        name: As the user types it.
        reads: Files of the run it depends on.
        settings: What of the recipe, and of the files that it names, decides its outcome.
        here: What else does: the machine that it runs on, and what was asked for this time alone.
            Later stages need not be done where, and as, this one was.
        run: Does the work; returns the names of the files it wrote.
        result: What a user or a program wants to know of it, read from its files.
        gate: Raises where its files say that a limit is exceeded. A run goes on to its report
            before it ends with that.
        settled: Whether what it wrote will do. Otherwise it is tried again when it is asked for by
            name, though nothing has changed since that a run could know of.
    """

    name: str
    reads: tuple[str, ...]
    settings: Callable[[Run], Json]
    run: Callable[[Run], tuple[str, ...]]
    result: Callable[[Run], Json]
    gate: Callable[[Run], None] = _no_gate
    here: Callable[[Run], Json] = _nothing
    settled: Callable[[Run], bool] = _always


def reads_of(stage: Stage, folder: RunFolder) -> dict[str, str]:
    """Returns the hashes of the files that a stage reads.

    Raises:
        UsageError: If one was not made yet, or was made from files that have changed since.
        CorruptInputError: If one, or a file that it was made from, is not as its stage left it.
    """
    if missing := unfinished(folder, stage.reads):
        raise UsageError(
            f"the run {folder.root.name!r} has no {', '.join(missing)} yet, which {stage.name} "
            f"needs; do the earlier stages first: {command('run', folder.root)}"
        )
    reads = folder.hashes(stage.reads)
    refuse_changed(folder, reads)
    if behind := outdated(folder, stage.reads):
        raise UsageError(
            f"{behind} of the run {folder.root.name!r} was done before what it reads changed, and "
            f"{stage.name} would mix old and new; bring all up to date: "
            f"{command('run', folder.root)}"
        )
    return reads


def perform(
    stage: Stage,
    run: Run,
    *,
    again: bool = False,
    before: Callable[[], None] | None = None,
) -> bool:
    """Returns whether a stage had to be done: not if the same code did it on the same inputs.

    Args:
        stage: What to do.
        run: The run.
        again: Whether to do it in any case.
        before: Called if there is something to do, before it is done.

    Raises:
        UsageError: If an earlier stage that it needs was not done yet, or was done from files that
            have changed since.
        CorruptInputError: If a file that it needs, or that such a file was made from, is not as
            the stage that made it left it.
    """
    folder, reads = run.folder, reads_of(stage, run.folder)
    settings = stage.settings(run)
    decisive = {"reads": reads, "settings": settings, "here": stage.here(run)}
    inputs = sha256_json({"code": code_hash(), **decisive})
    if not again and is_current(folder, stage.name, inputs):
        run.reporter.stage(stage.name, "skip")
        return False
    if before is not None:
        before()
    run.reporter.stage(stage.name, "run")
    started = time.perf_counter()
    try:
        outputs = stage.run(run)
    except BaseException as error:
        if type(error) not in REFUSALS:
            interrupted = isinstance(error, KeyboardInterrupt)
            words = "interrupted" if interrupted else words_of(error)
            record_failure(folder, stage.name, reads, words)
        raise
    seconds = time.perf_counter() - started
    hashes = hashes_of(settings)
    record_stage(folder, stage.name, inputs, reads, outputs, seconds, hashes, code_hash())
    run.reporter.stage(stage.name, "done", seconds)
    return True


def refuse_stale(stage: Stage, earlier: Iterable[Stage], run: Run) -> None:
    """Refuses a stage that would tell of a network, data or settings which are others by now.

    Args:
        stage: What is to be done.
        earlier: The stages before it, as they are done.
        run: The run.

    Raises:
        UsageError: If one of those that it goes back to was done with others.
    """
    folder = run.folder
    needed = sources(folder, stage.reads)
    for before in earlier:
        if before.name not in needed:
            continue
        changed = other_settings(folder, before.name, hashes_of(before.settings(run)))
        if changed:
            raise UsageError(
                f"{before.name} of the run {folder.root.name!r} was done with other settings or "
                f"files than are asked for now ({', '.join(changed)}), so {stage.name} would tell "
                "of what no longer is; bring all up to date, with the same options: "
                f"{command('run', folder.root)}"
            )


def hashes_of(settings: Json) -> dict[str, str]:
    """Returns the hash of each setting of a stage, by name."""
    return {key: sha256_json(value) for key, value in settings.items()}
