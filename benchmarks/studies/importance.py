"""How well two ways to score a candidate agree with themselves, with each other, and with plans.

    python -m benchmarks.studies.importance

scores the same candidates by ``calibrate`` and by the paper's short trainings under several seeds,
sums single losses against the joint loss of random plans, and compares the two objectives. The same
command continues after an interruption. Tables are shared with ``benchmarks.studies.glyphs``: let
one of the two work at a time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.studies.arms import ARMS
from benchmarks.studies.candidates import (
    METHODS,
    VARIANTS,
    Scoring,
    additivity,
    near_plans,
    objectives,
    random_plans,
    score,
)
from benchmarks.studies.command import conduct, shared_parser
from benchmarks.studies.glyphs import note_network
from benchmarks.studies.journal import Journal
from benchmarks.studies.planning import TableJob, make_latencies, make_table
from benchmarks.studies.settings import NETWORKS, ROOT, Settings, run_of
from benchmarks.studies.workers import Clock, run_jobs
from trt_layermerge.core.jsonio import Json

PUBLISHED = ROOT / "docs" / "results" / "data" / "importance.jsonl"
JOURNAL = "importance.jsonl"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Joint:
    """Joint losses of whole plans of a network, drawn at ``random`` or ``near`` the optimum."""

    network: str
    plans: int
    by: str


Job = TableJob | Scoring | Joint


def perform(settings: Settings, job: Job, clock: Clock) -> list[Json]:
    """Returns the rows of one job on one thread, perhaps from a process of its own."""
    torch.set_num_threads(1)
    if isinstance(job, TableJob):
        return [{"kind": "table", **make_table(settings, job, clock)}]
    if isinstance(job, Scoring):
        return score(settings, job, clock)
    run = run_of(settings, settings.network(job.network), "full")
    if job.by == "near":
        return additivity(run, job.network, near_plans(run, job.plans), job.by)
    found = additivity(run, job.network, random_plans(run, job.plans), job.by)
    clock.check()
    return [*found, *objectives(run, job.network)]


def jobs_of(settings: Settings, count: int, plans: int) -> list[Job]:
    """Returns everything that is to do, tables before what needs them."""
    names = [network.name for network in settings.networks]
    tables: list[Job] = [TableJob(name, "full") for name in names]
    scorings: list[Job] = [
        Scoring(name, method, seed, count)
        for seed in settings.seeds
        for method in (*METHODS, *VARIANTS)
        for name in names
    ]
    joint = [Joint(name, plans, by) for by in ("random", "near") for name in names]
    return [*tables, *joint, *scorings]


def run_study(
    settings: Settings,
    count: int,
    plans: int,
    workers: int = 1,
    clock: Clock | None = None,
    tell: Tell = print,
) -> Journal:
    """Returns the results when nothing is left to do.

    Args:
        settings: Networks, seeds and folder.
        count: Candidates of each network.
        plans: Random plans of each network.
        workers: Processes.
        clock: When to stop.
        tell: Is told the progress.

    Raises:
        OutOfTimeError: If the time is over first; what was done is on the disk.
        UsageError: If the folder was begun with other settings.
    """
    clock = clock or Clock()
    identity = {"candidates": count, "plans": plans, "changes": dict(settings.changes)}
    journal = Journal.open(settings.work / JOURNAL, "importance-study", identity)
    for network in settings.networks:
        note_network(settings, network, journal)
        tell(f"{network.name}: latencies")
        make_latencies(settings, network, clock)
    wanted, began = jobs_of(settings, count, plans), time.monotonic()

    def pending() -> list[Job]:
        left = [job for job in wanted if _name(job) not in _done(journal)]
        waiting = {job.network for job in left if isinstance(job, TableJob)}
        return [job for job in left if not (isinstance(job, Joint) and job.network in waiting)]

    def record(job: Job, rows: list[Json]) -> None:
        for row in rows:
            journal.add(**row)
        journal.add(kind="done", job=_name(job))
        left = len(pending())
        tell(f"{_name(job)}: {len(rows)} rows; {left} jobs left, {_minutes(began):.0f} minutes in")

    run_jobs(pending, partial(perform, settings), record, workers, clock)
    return journal


def _name(job: Job) -> str:
    if isinstance(job, Scoring):
        return job.name
    if isinstance(job, Joint):
        return f"{job.network}-{'joint' if job.by == 'random' else job.by}"
    return f"{job.network}-{job.tables}"


def _done(journal: Journal) -> set[str]:
    return {str(row["job"]) for row in journal.of("done")}


def _minutes(began: float) -> float:
    return (time.monotonic() - began) / 60


def parser() -> argparse.ArgumentParser:
    """Returns what can be typed."""
    found = shared_parser("importance", __doc__, PUBLISHED)
    add = found.add_argument
    add("--candidates", type=int, default=36, metavar="N", help="of each network")
    add("--plans", type=int, default=24, metavar="N", help="random plans of each network")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study; returns 0 when it is complete, 1 on an error and 3 when time was over."""
    options = parser().parse_args(arguments)
    tell: Tell = partial(print, flush=True)

    def work(clock: Clock) -> Journal:
        settings = Settings(
            work=options.work,
            networks=tuple(n for n in NETWORKS if n.name in options.networks),
            arms=tuple(arm for arm in ARMS if arm.name == "ours"),
            seeds=tuple(options.seeds),
            data=options.data.resolve() if options.data else None,
        )
        count, plans = options.candidates, options.plans
        return run_study(settings, count, plans, options.workers, clock, tell)

    return conduct(options, work)


if __name__ == "__main__":
    raise SystemExit(main())
