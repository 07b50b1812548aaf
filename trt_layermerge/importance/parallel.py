"""Scores candidates in several processes, here or on a cluster, through Ray.

Every worker builds the scorer once and then scores one candidate at a time. A score depends on its
candidate alone, so it is the same, bit for bit, on the same kind of processor with the same number
of threads, whichever worker gives it. Workers write nothing. What a dead worker was scoring is
given to another one.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

from trt_layermerge import __version__
from trt_layermerge.core.candidate import Candidate, CandidateKey
from trt_layermerge.core.tables import ImportanceEntry
from trt_layermerge.errors import (
    DeviceError,
    LayerMergeError,
    MissingDependencyError,
    UsageError,
)
from trt_layermerge.importance.table import Scorer

ATTEMPTS = 3
"""Workers that one candidate, or the start itself, may cost before it is given up."""

MakeScorer = Callable[[], Scorer]


@dataclass(frozen=True)
class Workers:
    """Which processes score.

    Attributes:
        count: How many.
        address: Of a Ray cluster (``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``); None starts
            Ray on this machine, unreachable from others, and ends it with the scoring.
        threads: Threads of each; None for an equal share of the processors.
        gpus: GPUs of each.
    """

    count: int
    address: str | None = None
    threads: int | None = None
    gpus: float = 0.0


def score_in_parallel(
    candidates: Sequence[Candidate], make: MakeScorer, workers: Workers, first: bool = False
) -> Iterator[tuple[Candidate, ImportanceEntry]]:
    """Yields every candidate with its score, as they come; starts nothing where there are none.

    Args:
        candidates: What to score.
        make: Makes a worker's scorer; it is sent to the workers with everything it holds.
        workers: Which processes score.
        first: Whether first looks are enough.

    Raises:
        MissingDependencyError: If Ray is not installed.
        DeviceError: If there is no such cluster, workers cannot start, or, after all others are
            scored, if a candidate ended every worker that tried it.
        UsageError: If the cluster has no machine for such a worker, or other versions.
        LayerMergeError: What the scorer raises.
    """
    if not candidates:
        return
    ray = _ray(local=workers.address is None)
    with _connected(ray, workers):
        crew = _Crew(ray, make, workers, _threads(ray, workers), first)
        try:
            yield from crew.scores(candidates)
        finally:
            crew.dismiss()


class _Worker:
    """One process of Ray's."""

    def __init__(self, threads: int) -> None:
        """Sets the number of threads for the libraries that the scorer will load."""
        os.environ["OMP_NUM_THREADS"] = str(threads)

    def start(self, make: MakeScorer) -> tuple[str, str]:
        """Builds the scorer; returns the versions that scores depend on."""
        self._scorer = make()
        return _versions()

    def entry(self, candidate: Candidate, first: bool) -> ImportanceEntry:
        """Returns the score of a candidate, or a first look."""
        return self._scorer.entry(candidate, first)


class _Crew:
    """The workers, what each of them does now, and what is still to do."""

    def __init__(
        self, ray: Any, make: MakeScorer, workers: Workers, threads: int, first: bool
    ) -> None:
        self._ray, self._count, self._threads, self._first = ray, workers.count, threads, first
        self._make = ray.put(make)
        self._kind = ray.remote(num_cpus=threads, num_gpus=workers.gpus)(_Worker)
        self._busy: dict[Any, tuple[Any, Candidate | None]] = {}
        self._waiting: deque[Candidate] = deque()

    def scores(
        self, candidates: Sequence[Candidate]
    ) -> Iterator[tuple[Candidate, ImportanceEntry]]:
        """Yields every candidate with its score."""
        self._waiting.extend(candidates)
        killed: Counter[CandidateKey] = Counter()
        given_up: list[Candidate] = []
        failed_starts = 0
        for _ in range(min(self._count, len(candidates))):
            self._hire()
        while self._busy:
            worker, candidate, answer = self._next()
            if answer is not None:
                self._occupy(worker)
                if candidate is not None:
                    yield candidate, answer
                continue
            if candidate is None:
                failed_starts += 1
                _check_starts(failed_starts)
            else:
                killed[candidate.key] += 1
                hopeless = killed[candidate.key] == ATTEMPTS
                (given_up if hopeless else self._waiting).append(candidate)
            if self._waiting:
                self._hire()
        if given_up:
            raise _deadly(given_up)

    def dismiss(self) -> None:
        """Ends every worker."""
        for worker, _ in self._busy.values():
            self._ray.kill(worker)
        self._busy.clear()

    def _hire(self) -> None:
        worker = self._kind.remote(self._threads)
        self._busy[worker.start.remote(self._make)] = worker, None

    def _occupy(self, worker: Any) -> None:
        """Gives a worker the next candidate, or ends it where none is left."""
        if self._waiting:
            candidate = self._waiting.popleft()
            self._busy[worker.entry.remote(candidate, self._first)] = worker, candidate
        else:
            self._ray.kill(worker)

    def _next(self) -> tuple[Any, Candidate | None, Any]:
        """Waits; returns a worker, what it did and what came of it, None if it died of it."""
        [done], _ = self._ray.wait(list(self._busy), num_returns=1)
        worker, candidate = self._busy.pop(done)
        try:
            answer = self._ray.get(done)
        except self._ray.exceptions.RayTaskError as error:
            self._ray.kill(worker)
            if isinstance(error.cause, LayerMergeError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError:
            return worker, candidate, None
        if candidate is None:
            _check_versions(answer)
        return worker, candidate, answer


def _ray(local: bool) -> Any:
    """Returns the library, told to send no statistics and, if local, to open no port to others."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if local:
        # Named after the systems that have no clusters: everywhere, 0 means loopback only.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        return import_module("ray")
    except ImportError as error:
        raise MissingDependencyError("ray", "scoring by several workers", "ray") from error


@contextmanager
def _connected(ray: Any, workers: Workers) -> Iterator[None]:
    """Connects to the cluster, or starts Ray here, and leaves it after; an open one is used."""
    if ray.is_initialized():
        yield
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if workers.address is None:
            cpus = workers.count * (workers.threads or _share(workers.count))
            ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
        else:
            ray.init(workers.address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = workers.address or "this machine"
        raise DeviceError(
            f"Ray cannot be used on {where}: {' '.join(str(error).split())}; check the cluster "
            "(ray status), or leave --ray out to use the processors of this machine"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _share(count: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // count)


def _threads(ray: Any, workers: Workers) -> int:
    """Returns the threads of a worker. Raises ``UsageError`` if no machine has as many."""
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    largest = max(cpus, default=0)
    threads = workers.threads or max(1, min(sum(cpus) // workers.count, largest))
    if threads > largest:
        raise UsageError(
            f"a worker of {threads} threads fits on no machine of the cluster, the largest has "
            f"{largest} processors; set scale.threads to {largest} or less"
        )
    return threads


def _versions() -> tuple[str, str]:
    return __version__, metadata.version("torch")


def _check_versions(found: tuple[str, str]) -> None:
    """Checks that a worker computes with the versions of this process."""
    own = _versions()
    if tuple(found) != own:
        raise UsageError(
            f"a worker has trt-layermerge {found[0]} with torch {found[1]}, and this process has "
            f"{own[0]} with {own[1]}; their scores may differ: install the same on every machine"
        )


def _check_starts(failed: int) -> None:
    if failed == ATTEMPTS:
        raise DeviceError(
            f"{failed} workers died while they recorded the network's values, most likely for lack "
            "of memory; use fewer of them (--workers) or fewer images (importance.fit_images, "
            "importance.score_images), then type the same command to continue"
        )


def _deadly(candidates: Sequence[Candidate]) -> DeviceError:
    names = "; ".join(str(candidate) for candidate in candidates[:5])
    return DeviceError(
        f"{len(candidates)} candidates ended {ATTEMPTS} workers each, all others are scored: "
        f"{names}. If memory is short, use fewer workers (--workers); the same command tries again"
    )
