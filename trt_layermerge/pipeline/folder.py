"""The folder of a run, and what is known to be up to date in it."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trt_layermerge.core.jsonio import Json, read_json, sha256_file, write_bytes, write_json
from trt_layermerge.core.scratch import clear_files
from trt_layermerge.errors import (
    CorruptInputError,
    DeviceError,
    UsageError,
    command,
    did_you_mean,
)

RECIPE, FAILED = "recipe.yaml", "failed.json"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a run keeps its files (``interface.md``: commands)."""

    root: Path

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    def hashes(self, names: tuple[str, ...]) -> dict[str, str]:
        """Returns the SHA-256 of files by name. Raises ``UsageError`` if one is missing."""
        return {name: sha256_file(self / name) for name in names}


def names_in(runs_dir: Path) -> list[str]:
    """Returns the names of the runs in a folder."""
    return sorted(path.parent.name for path in runs_dir.glob(f"*/{RECIPE}"))


def no_run(folder: RunFolder) -> str:
    """Returns the beginning of a message: there is no such run, and which there are."""
    name, place = folder.root.name, folder.root.parent.absolute()
    there = names_in(place)
    likely = did_you_mean(name, there) or (f"; there are {', '.join(there[:8])}" if there else "")
    return f"there is no run {name!r} in {place} yet{likely.removesuffix('?')}"


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Keeps other processes out of a run. The lock goes with the process, however that ends.

    What killed processes have left of unfinished files is cleared. Where files cannot be locked, or
    the folder cannot be written, there is no lock. A new folder in which nothing came to be goes.

    Raises:
        DeviceError: If another process works on the run, or the folder cannot be made.
    """
    path, handle = folder / ".lock", None
    new = [place for place in (folder.root, *folder.root.parents) if not place.exists()]
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(
            f"cannot write the folder {folder.root}: {error.strerror or error}; choose another one "
            "(--runs-dir DIR)"
        ) from error
    try:
        handle = _lock(path)
        os.ftruncate(handle, 0)
        os.write(handle, f"number {os.getpid()} on {platform.node()}".encode())
        clear_files(folder.root)
    except BlockingIOError as error:
        owner = ""
        with suppress(OSError):
            owner = path.read_text()
        raise DeviceError(
            f"another process ({owner or 'it has just begun'}) works on the run "
            f"{folder.root.name!r}; wait until it has ended, or name another run (--run NAME)"
        ) from error
    except OSError:  # whatever writes there will say it
        pass
    try:
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                path.unlink()
            os.close(handle)
        with suppress(OSError):
            for place in new:
                place.rmdir()


def _lock(path: Path) -> int:
    """Returns the open file, locked. Raises ``BlockingIOError`` if another process has it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        except OSError:
            os.close(handle)
            raise
        os.close(handle)  # its last owner has just removed it


def is_current(folder: RunFolder, stage: str, inputs: str) -> bool:
    """Whether a stage ran on these inputs and every file it wrote is as it left it.

    Args:
        folder: The run.
        stage: Its name.
        inputs: Hash of all that decides its outcome.
    """
    record = records_of(folder).get(stage)
    if record is None or record["inputs"] != inputs:
        return False
    outputs: Mapping[str, str] = record["outputs"]
    return all(
        (folder / name).is_file() and sha256_file(folder / name) == digest
        for name, digest in outputs.items()
    )


def unfinished(folder: RunFolder, files: tuple[str, ...]) -> list[str]:
    """Returns those of the files that are not there, or that no stage has finished."""
    made = {file for record in records_of(folder).values() for file in record["outputs"]}
    return [name for name in files if name not in made or not (folder / name).is_file()]


def outdated(folder: RunFolder, files: tuple[str, ...]) -> str | None:
    """Returns a stage that made one of these files from files that are others now, or None.

    Looks through what the files were made from, back to the first stage.

    Raises:
        CorruptInputError: If a file that one of them was made from is not as its own stage left it.
    """
    for stage, record in sources(folder, files).items():
        for name, digest in record["reads"].items():
            found = sha256_file(folder / name) if (folder / name).is_file() else None
            if found == digest:
                continue
            if found is not None:
                refuse_changed(folder, {name: found})
            return stage
    return None


def sources(folder: RunFolder, files: tuple[str, ...]) -> dict[str, Json]:
    """Returns the records of the stages that files go back to, by name, the last ones first."""
    records = records_of(folder)
    makers = {file: stage for stage, record in records.items() for file in record["outputs"]}
    found: dict[str, Json] = {}
    pending, seen = list(files), set(files)
    while pending:
        stage = makers.get(pending.pop())
        if stage is None:
            continue
        found[stage] = records[stage]
        pending += found[stage]["reads"].keys() - seen
        seen |= found[stage]["reads"].keys()
    return found


def other_settings(folder: RunFolder, stage: str, settings: Mapping[str, str]) -> list[str]:
    """Returns the names of those settings that a recorded stage was not done with.

    Args:
        folder: The run.
        stage: Its name.
        settings: Hashes of what decides its outcome now, by name.
    """
    noted: Mapping[str, str] = records_of(folder)[stage]["settings"]
    return [name for name, digest in settings.items() if noted.get(name) != digest]


def refuse_changed(folder: RunFolder, found: Mapping[str, str]) -> None:
    """Checks that files are as the stages that made them left them.

    Args:
        folder: The run.
        found: SHA-256 of the files by name, as they are.

    Raises:
        CorruptInputError: If one is not.
    """
    for maker, record in records_of(folder).items():
        for name, digest in record["outputs"].items():
            if found.get(name, digest) != digest:
                raise CorruptInputError(
                    f"{folder / name} is not as {maker} left it: it is damaged, was changed by "
                    f"hand, or {maker} was begun again and failed; delete the file and make it "
                    f"again: {command('run', folder.root)}"
                )


def record_stage(
    folder: RunFolder,
    stage: str,
    inputs: str,
    reads: Mapping[str, str],
    outputs: tuple[str, ...],
    seconds: float,
    settings: Mapping[str, str],
    code: str,
) -> None:
    """Notes on what a stage ran, what it wrote, and how long it took.

    Args:
        folder: The run.
        stage: Its name.
        inputs: Hash of all that decides its outcome.
        reads: Hashes of the files that it read.
        outputs: Names of the files that it wrote.
        seconds: How long it took.
        settings: Hashes of what else decided its outcome, by name.
        code: Hash of the program.
    """
    records = records_of(folder)
    records[stage] = {
        "inputs": inputs,
        "reads": dict(reads),
        "outputs": folder.hashes(outputs),
        "seconds": seconds,
        "settings": dict(settings),
        "code": code,
    }
    write_json(folder / "state.json", "state", {"stages": records})
    for path in folder.root.glob("*.part.jsonl"):  # what an unfinished stage keeps
        path.unlink()
    if stage == failure_of(folder).get("stage"):
        (folder / FAILED).unlink()


def record_failure(folder: RunFolder, stage: str, reads: Mapping[str, str], words: str) -> None:
    """Notes why a stage of a begun run ended, for who asks later (``status``).

    Not where what it left before is as good as ever, such as a plan when another goal was missed.
    """
    done = records_of(folder).get(stage, {}).get("reads") == dict(reads)
    with suppress(OSError, DeviceError):  # a full disk is why it failed
        if not done and (folder / RECIPE).is_file():
            write_json(folder / FAILED, "failed", {"stage": stage, "error": words})


def failure_of(folder: RunFolder) -> Json:
    """Returns ``stage`` and ``error`` of what failed last and was not done since, or nothing."""
    try:
        return read_json(folder / FAILED, "failed")
    except (UsageError, CorruptInputError):
        return {}


def copy_stages(source: RunFolder, target: RunFolder, stages: tuple[str, ...]) -> None:
    """Brings what stages of a run made into another run, where it has not the same already.

    Args:
        source: The run that did them; a stage that it did not do is left out.
        target: The other one, begun or new.
        stages: Their names.

    Raises:
        DeviceError: If a file cannot be written.
    """
    theirs, own = records_of(source), records_of(target)
    for stage in (stage for stage in stages if stage in theirs):
        for name, digest in theirs[stage]["outputs"].items():
            if not ((target / name).is_file() and sha256_file(target / name) == digest):
                write_bytes(target / name, (source / name).read_bytes())
        own[stage] = theirs[stage]
    if own != records_of(target):
        write_json(target / "state.json", "state", {"stages": own})


def stage_seconds(folder: RunFolder) -> dict[str, float]:
    """Returns how long each recorded stage took, in seconds."""
    return {stage: float(record["seconds"]) for stage, record in records_of(folder).items()}


def records_of(folder: RunFolder) -> Json:
    """Returns what ``record_stage`` noted of each stage, by name; nothing where that is damaged."""
    path = folder / "state.json"
    if not path.exists():
        return {}
    try:
        records = read_json(path, "state")["stages"]
        return {
            name: {
                "inputs": str(record["inputs"]),
                "reads": dict(record["reads"]),
                "outputs": dict(record["outputs"]),
                "seconds": float(record["seconds"]),
                "settings": dict(record["settings"]),
                "code": record.get("code"),
            }
            for name, record in records.items()
        }
    except (CorruptInputError, AttributeError, KeyError, TypeError, ValueError):
        # Only a record of what can be skipped: without it every stage looks at its files again.
        return {}
