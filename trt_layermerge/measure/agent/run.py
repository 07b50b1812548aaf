"""Works through a folder of jobs: one worker, one lock, one durable line for every measurement.

Nothing that a job does can end the run: a worker that dies, hangs or loses the GPU is started anew,
the job is tried once more and then recorded with its error. The run itself may be killed at any
moment; the same command goes on, and what was measured is not measured again. A job that takes the
whole device down is recorded as failed after a few tries.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Callable, Iterator

from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.scratch import clear_files
from trt_layermerge.errors import DeviceError, UsageError
from trt_layermerge.measure.agent.client import Worker, WorkerLost
from trt_layermerge.measure.agent.jobs import Job, Manifest, load_manifest, read_model
from trt_layermerge.measure.agent.results import Results, own_file
from trt_layermerge.measure.agent.schedule import Schedule, Task, counts
from trt_layermerge.measure.agent.worker import TIMING_CACHE

LOCK = ".agent.lock"
LOCK_SECONDS = 5.0
"""How long the remains of a killed agent may take to vanish."""

MOST_ATTEMPTS = 2
"""Tries at a job by one agent."""

MOST_UNANSWERED = 3
"""Tries after which the agent, or the device, was gone."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        done: Jobs that are measured.
        total: All jobs.
        label: The job that was just measured.
        seconds_left: How long the others will take, about; None before the first.
        note: What a user should know, or nothing.
    """

    done: int
    total: int
    label: str
    seconds_left: float | None
    note: str = ""


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        results: The file of the results.
        total: Number of jobs.
        failed: Labels of the jobs that have an error instead of a latency.
        notes: What a user should know of drift.
    """

    results: Path
    total: int
    failed: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> Json:
        """Returns a JSON-ready mapping."""
        return {**asdict(self), "results": str(self.results)}


def run_jobs(
    folder: Path,
    *,
    backend: str | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Summary:
    """Measures every job of a folder that is not measured yet; returns how it ended.

    Args:
        folder: The folder with ``manifest.json``; ``results.jsonl`` is written beside it.
        backend: Name of the backend, in place of the manifest's.
        on_progress: Called after every measurement.

    Raises:
        UsageError: If there is no manifest, another agent works here, or the results were begun on
            another device or in another power mode.
        CorruptInputError: If manifest, results or a model are damaged.
        DeviceError: If the backend cannot be used, or the folder cannot be written.
    """
    manifest = load_manifest(folder)
    if backend is not None:
        manifest = replace(manifest, backend=backend)
    with only_agent(folder) as lock:
        clear_files(folder)
        own_file(folder / TIMING_CACHE)
        results = Results(folder, manifest)
        results.check_backend()
        schedule = Schedule(manifest, results.rows)
        if results.header is None or schedule.next() is not None:
            _check_models(folder, manifest, schedule)
            _Run(folder, manifest, results, schedule, lock, on_progress).to_the_end()
    valid = counts(results.rows)
    return Summary(
        results=results.path,
        total=len(manifest.jobs),
        failed=tuple(manifest.jobs[key].label for key, row in valid.items() if row.timing is None),
        notes=tuple(schedule.notes),
    )


def list_jobs(folder: Path) -> list[Json]:
    """Returns key, label and state of every job, and its latency in ms where it is done.

    Raises:
        UsageError: If there is no manifest.
        CorruptInputError: If manifest or results are damaged.
    """
    manifest = load_manifest(folder)
    timings = {k: row.timing for k, row in counts(Results(folder, manifest).rows).items()}
    listed: list[Json] = []
    for key, job in manifest.jobs.items():
        timing = timings.get(key)
        state = "waiting" if key not in timings else "failed" if timing is None else "done"
        ms = None if timing is None else timing.ms
        listed.append({"key": key, "label": job.label, "state": state, "ms": ms})
    return listed


def _check_models(folder: Path, manifest: Manifest, schedule: Schedule) -> None:
    """Reads the models that are still needed, so that damage shows now and not hours later."""
    for key in schedule.waiting:
        for model in manifest.jobs[key].models:
            read_model(folder, model)


@contextmanager
def only_agent(folder: Path) -> Iterator[int]:
    """Yields the descriptor of a lock that one agent can hold in a folder at a time.

    Raises:
        UsageError: If another agent holds it.
        DeviceError: If the folder cannot be written.
    """
    path = own_file(folder / LOCK)
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise DeviceError(
            f"cannot write into {folder}: {error.strerror}; copy it where you may write"
        ) from error
    try:
        until = time.monotonic() + LOCK_SECONDS
        while not _locked(lock):
            if time.monotonic() > until:
                owner = os.pread(lock, 20, 0).decode(errors="replace").strip() or "unknown"
                raise UsageError(
                    f"another agent (process {owner}) works in {folder}, and two would disturb "
                    f"each other's latencies; wait until it is done, or end it: kill {owner}"
                )
            time.sleep(0.05)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield lock
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Run:
    """One run of the agent, from the first measurement that is missing to the last."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        results: Results,
        schedule: Schedule,
        lock: int,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._folder, self._manifest, self._lock = folder, manifest, lock
        self._results, self._schedule = results, schedule
        self._on_progress = on_progress
        self._worker: Worker | None = None

    def to_the_end(self) -> None:
        """Measures until nothing is left, and ends the worker."""
        started, measured, noted = time.monotonic(), 0, 0
        try:
            self._ready()
            task = self._schedule.next()
            while task is not None:
                self._schedule.add(self._results.append(self._measure(task)))
                measured += 1
                each = (time.monotonic() - started) / measured
                notes = self._schedule.notes[noted:]
                noted += len(notes)
                self._report(task, each, " ".join(notes))
                task = self._schedule.next()
        finally:
            self._end_worker()

    def _report(self, task: Task, each: float, note: str) -> None:
        total, left = len(self._manifest.jobs), self._schedule.left
        label = self._manifest.jobs[task.key].label
        self._on_progress(Progress(total - left, total, label, each * left, note))

    def _measure(self, task: Task) -> Json:
        """Returns the row of a measurement, with its error where even the second try failed."""
        job = self._manifest.jobs[task.key]
        started = time.monotonic()
        earlier = attempts = self._results.attempts.unanswered(task.key)
        answer = _went_down(earlier)
        lost = earlier < MOST_UNANSWERED
        while lost and attempts < earlier + MOST_ATTEMPTS:
            attempts += 1
            answer = self._attempt(job)
            lost = answer.pop("sticky", False)
            if lost:
                self._end_worker()
        known = {"models": None, "before": None, "after": None, **answer}
        return {
            "key": task.key,
            **known,
            "attempts": attempts,
            "seconds": round(time.monotonic() - started, 3),
            "sentinel": task.sentinel,
        }

    def _attempt(self, job: Job) -> Json:
        """Returns a worker's answer; ``sticky`` where the worker is of no more use."""
        worker, begun = self._ready(), self._results.attempts
        begun.begin(job.key)
        try:
            return worker.measure(job, self._manifest)
        except WorkerLost as lost:
            return {"error": str(lost), "sticky": True}
        except BaseException:  # somebody interrupts, or a model is damaged
            begun.withdraw(job.key)
            raise

    def _ready(self) -> Worker:
        """Returns the worker, a new one where there is none. Raises ``DeviceError``."""
        if self._worker is None:
            try:
                self._worker = Worker(self._folder, self._manifest.backend, self._lock)
            except WorkerLost as lost:
                raise DeviceError(
                    f"the measuring process does not start: {lost}. Reboot the device if it "
                    "worked before, then type the same command to continue"
                ) from None
            self._results.begin(self._worker.device, self._worker.facts)
        return self._worker

    def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()


def _went_down(times: int) -> Json:
    return {
        "error": f"the agent or the whole device went down {times} times while this was measured; "
        "it is not tried again in this folder"
    }
