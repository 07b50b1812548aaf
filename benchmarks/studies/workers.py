"""Jobs on a few processes, until nothing is left or the time is over."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TypeVar

from trt_layermerge.errors import DeviceError
from trt_layermerge.pipeline.options import NullReporter

J = TypeVar("J")
R = TypeVar("R")

Perform = Callable[[J, "Clock"], "R"]


class OutOfTimeError(Exception):
    """The time that a study was given is over; what was done is on the disk."""


@dataclass(frozen=True)
class Clock:
    """When to stop.

    Attributes:
        deadline: Seconds since the epoch, or None for never.
        parent: The process that asked for the work: without it, nobody waits for the answer.
    """

    deadline: float | None = None
    parent: int | None = None

    def check(self) -> None:
        """Raises ``OutOfTimeError`` if it is time to stop."""
        if self.over or (self.parent is not None and os.getppid() != self.parent):
            raise OutOfTimeError

    @property
    def over(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.time() >= self.deadline


class Checking(NullReporter):
    """Stops a stage by what it tells, between two steps when the time is over."""

    def __init__(self, clock: Clock, tell: Callable[[str], None] | None = None) -> None:
        self._clock, self._tell = clock, tell

    def progress(self, label: str, done: int, total: int) -> None:
        """Tells every tenth step, and checks the clock."""
        if self._tell and total and done % max(1, total // 10) == 0:
            self._tell(f"  {label} {done}/{total}")
        if done < total:
            self._clock.check()


def run_jobs(
    pending: Callable[[], Sequence[J]],
    perform: Perform[J, R],
    record: Callable[[J, R], None],
    workers: int,
    clock: Clock,
) -> None:
    """Does what is pending, and what becomes pending by it, until nothing is.

    Args:
        pending: Returns the jobs that are ready and not recorded; called again after every one.
        perform: Does a job; a function of a module, for it may run in another process.
        record: Makes a result durable; called in this process alone.
        workers: Processes; with one, jobs are done in this process.
        clock: When to stop.

    Raises:
        OutOfTimeError: If the time is over first.
        DeviceError: If a process ends without an answer.
    """
    if workers == 1:
        while jobs := pending():
            clock.check()
            record(jobs[0], perform(jobs[0], clock))
        return
    running: dict[Connection, tuple[J, SpawnProcess]] = {}
    try:
        while True:
            _fill(running, pending(), perform, workers, clock)
            if not running:
                break
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                _collect(ready, running, record)
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
    clock.check()


def _fill(
    running: dict[Connection, tuple[J, SpawnProcess]],
    jobs: Sequence[J],
    perform: Perform[J, R],
    workers: int,
    clock: Clock,
) -> None:
    """Starts processes for jobs that none has yet."""
    busy = [job for job, _ in running.values()]
    context = multiprocessing.get_context("spawn")
    for job in [j for j in jobs if j not in busy][: workers - len(running)]:
        if clock.over:
            return
        ours, theirs = context.Pipe(duplex=False)
        work = (theirs, perform, job, Clock(clock.deadline, os.getpid()))
        process = context.Process(target=_work, args=work)
        process.start()
        theirs.close()
        running[ours] = job, process


def _collect(
    ready: Connection,
    running: dict[Connection, tuple[J, SpawnProcess]],
    record: Callable[[J, R], None],
) -> None:
    """Takes the answer of a process that has one, or has ended."""
    job, process = running.pop(ready)
    try:
        state, answer = ready.recv()
    except EOFError:
        state, answer = "died", None
    process.join()
    ready.close()
    if state == "died":
        raise DeviceError(
            f"the process for {job} ended without an answer (exit code {process.exitcode}); "
            "type the same command to do it again"
        )
    if state == "failed":
        raise DeviceError(f"{job} failed:\n{answer}")
    if state == "done":
        record(job, answer)


def _work(answer: Connection, perform: Perform[J, R], job: J, clock: Clock) -> None:
    """Does one job in a process of its own."""
    try:
        answer.send(("done", perform(job, clock)))
    except OutOfTimeError:
        with suppress(BrokenPipeError):  # nobody listens where the parent is gone
            answer.send(("late", None))
    except Exception:
        answer.send(("failed", traceback.format_exc()))
