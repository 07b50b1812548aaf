"""Disks, files and memory that end at every stage, and several processes on one run."""

from __future__ import annotations

import ctypes
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

from benchmarks.faults.campaign import Trial
from benchmarks.faults.processes import (
    PATIENCE_S,
    Ended,
    Project,
    ended,
    observe,
    project_in,
    stages_of,
    started,
)

PAGE, ROOM = 4096, 64 << 20
LIMITS = ("full disk", "read-only folder", "file-size limit", "memory limit")

_NEW_MOUNTS, _READ_ONLY, _REMOUNT, _BIND, _PRIVATE = 0x20000, 1, 32, 4096, 0x44000
_libc = ctypes.CDLL(None, use_errno=True)


def own_disk(folder: Path) -> bool:
    """Puts a small disk of this process's own over a folder; returns whether it may do so."""
    folder.mkdir(parents=True, exist_ok=True)
    if _libc.unshare(_NEW_MOUNTS) != 0:
        return False
    _mount("none", Path("/"), None, _PRIVATE)
    return _mount("tmpfs", folder, "tmpfs", 0, f"size={ROOM}")


def _mount(source: str, target: Path, kind: str | None, flags: int, data: str = "") -> bool:
    given = [None if s is None else s.encode() for s in (source, str(target), kind)]
    return bool(_libc.mount(*given, ctypes.c_ulong(flags), data.encode()) == 0)


def limit_trials(work: Path, count: int) -> Iterator[Trial]:
    """Yields limits, in turn over all stages and kinds.

    Args:
        work: Folder of the project.
        count: How many.
    """
    project = project_in(work / "project")
    for number, stage in stages_of(count):
        kind = LIMITS[(number // 13 + number) % len(LIMITS)]
        yield Trial(
            f"{kind} from {stage} on", number, _limiting(project, stage, kind), 2 * PATIENCE_S
        )


def _limiting(project: Project, stage: str, kind: str) -> Callable[[Random], tuple[str, str]]:
    def work(rng: Random) -> tuple[str, str]:
        runs = project.run.parent
        if not runs.is_mount() and not own_disk(runs):
            return "same", "not tried: only root may mount a disk"
        project.ready()
        share = rng.random()
        project.reset(stage)

        def on_stage(name: str) -> None:
            if name == stage:
                LIMITING[kind](runs, share)

        limited = project.resumed(lambda: observe(on_stage))
        _libc.umount2(str(runs).encode(), 2) if _read_only(runs) else None
        (runs / "ballast").unlink(missing_ok=True)
        said = f"{share:.2f}: ended with {limited.code}: {limited.said[:150]}"
        # Where memory ends inside a library, the system may end the process: that is a kill.
        killed = kind == "memory limit" and limited.code < 0
        if not killed and (limited.raw or limited.code not in (0, 4)):
            return "raw", said
        done = project.resumed()
        if done.code != 0:
            return "raw", f"{said} and is not taken up again: {done.said}"
        if wrong := project.faults():
            return "other", f"{said}, {wrong}"
        return ("same" if limited.code == 0 else "refused"), said

    return work


def _read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _fill(runs: Path, share: float) -> None:
    """Leaves up to eight pages of the disk."""
    with (runs / "ballast").open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(PAGE)):
                pass
        file.truncate(max(0, file.tell() - int(share * 9) * PAGE))


def _close(runs: Path, _: float) -> None:
    _mount(str(runs), runs, None, _BIND)
    _mount(str(runs), runs, None, _BIND | _REMOUNT | _READ_ONLY)


def _cut_files(_: Path, share: float) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * 20_000),) * 2)


def _cut_memory(_: Path, share: float) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * PAGE + int(share * (48 << 20)),) * 2)


LIMITING: dict[str, Callable[[Path, float], None]] = dict(
    zip(LIMITS, (_fill, _close, _cut_files, _cut_memory), strict=True)
)


def crowd_trials(work: Path, count: int) -> Iterator[Trial]:
    """Yields two and four processes at once on one run, begun at any stage.

    Args:
        work: Folder of the project.
        count: How many.
    """
    project = project_in(work / "project")
    for number, stage in stages_of(count):
        many = (2, 4)[number % 2]
        yield Trial(
            f"{many} processes at once", number, _crowding(project, stage, many), 2 * PATIENCE_S
        )


def _crowding(project: Project, stage: str, many: int) -> Callable[[Random], tuple[str, str]]:
    def work(rng: Random) -> tuple[str, str]:
        project.ready()
        project.reset(stage)
        paths = [project.folder / f"said{one}" for one in range(many)]
        delays = [rng.choice((0.0, 0.0, 0.05, 1.0)) * rng.random() for _ in paths]

        def run(delay: float) -> int:
            time.sleep(delay)
            return project.type()

        begun = [
            started(lambda d=delay: run(d), path) for delay, path in zip(delays, paths, strict=True)
        ]
        done: list[Ended] = [ended(pid, p) for pid, p in zip(begun, paths, strict=True)]
        codes = sorted(one.code for one in done)
        said = f"from {stage} on: {codes}"
        odd = [one.said for one in done if one.raw or one.code not in (0, 4)]
        odd += [one.said for one in done if one.code == 4 and "another process" not in one.said]
        if odd or 0 not in codes:
            return "raw", f"{said}: {odd}"
        wrong = project.faults()
        return ("other", f"{said}: {wrong}") if wrong else ("same", said)

    return work
