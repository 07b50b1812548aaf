"""SIGKILL at write points and at any moment of every stage; the run is taken up again."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.faults.campaign import Trial
from benchmarks.faults.processes import PATIENCE_S, Project, observe, project_in, stages_of

WRITES = ("fsync", "mkdir", "open", "rename", "replace", "rmdir", "truncate", "unlink")
LONGEST_S = 1.0


class Points:
    """Counts what this process does to files, before and after each; kills it at one of them.

    Attributes:
        last: The point that kills; -1 for none.
        seen: Points so far.
    """

    def __init__(self) -> None:
        self.last, self.seen, self.on = -1, 0, False

    def point(self) -> None:
        """Is one."""
        if self.on:
            if self.seen == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            self.seen += 1

    def around(self, right: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function with a point before and one after it."""

        def surrounded(*given: Any, **more: Any) -> Any:
            self.point()
            found = right(*given, **more)
            self.point()
            return found

        return surrounded

    def install(self) -> None:
        """Watches the functions of ``os`` that change files, and what SQLite commits."""
        for name in WRITES:
            setattr(os, name, self.around(getattr(os, name)))
        points = self

        class Watched(sqlite3.Connection):
            def __exit__(self, *rest: Any) -> Any:
                return points.around(super().__exit__)(*rest)

        connect = sqlite3.connect
        sqlite3.connect = lambda *given, **more: connect(*given, **more, factory=Watched)


def kill_trials(work: Path, count: int) -> Iterator[Trial]:
    """Yields kills, in turn over all stages: half at a write point, half at any moment.

    Args:
        work: Folder of the project.
        count: How many.
    """
    project = project_in(work / "project")
    for number, stage in stages_of(count):
        kind = "write point" if (number // 13) % 2 == 0 else "moment"
        yield Trial(
            f"kill at a {kind} of {stage}", number, _killing(project, stage, kind), 2 * PATIENCE_S
        )


def _killing(project: Project, stage: str, kind: str) -> Callable[[Random], tuple[str, str]]:
    def work(rng: Random) -> tuple[str, str]:
        project.ready()
        tally = project.folder / "tally"
        tally.unlink(missing_ok=True)
        points, share = Points(), rng.random()
        if kind == "write point":
            points.last = int(share * _points_of(project, stage))
        project.reset(stage)

        def on_stage(name: str) -> None:
            points.on = name == stage
            if points.on and kind == "moment":
                threading.Thread(target=_later, args=(share * LONGEST_S,), daemon=True).start()

        def before() -> None:
            points.install()
            observe(on_stage, tally)

        killed = project.resumed(before)
        if killed.raw:
            return "raw", killed.said
        done = project.resumed(lambda: observe(lambda _: None, tally))
        said = f"{kind} {points.last if kind == 'write point' else f'{share:.2f} s'}"
        if killed.code == 0:
            said += ", done before"
        if done.code != 0:
            return "raw", f"{said}: not taken up again: {done.said}"
        lost = len(tally.read_text().splitlines()) + project.measured[stage]
        lost -= project.measured["whole"]
        faults = [project.faults(), f"{lost} measurements lost" if lost > 1 else ""]
        wrong = "; ".join(filter(None, faults))
        return ("other", f"{said}: {wrong}") if wrong else ("same", f"{said}, lost {lost}")

    return work


def _later(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def _points_of(project: Project, stage: str) -> int:
    """Returns how many points an undisturbed stage has."""
    if stage not in project.points:
        points, told = Points(), project.folder / "points"

        def on_stage(name: str) -> None:
            if points.on:
                told.write_text(str(points.seen))
                os._exit(0)
            points.on = name == stage

        def before() -> None:
            points.install()
            observe(on_stage)

        told.unlink(missing_ok=True)
        project.reset(stage)
        project.resumed(before)
        project.points[stage] = int(told.read_text()) if told.exists() else 12
    return project.points[stage]
