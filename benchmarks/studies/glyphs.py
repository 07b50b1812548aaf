"""Ours, the paper, depth, layer and random at equal measured latency, trained with equal effort.

    python -m benchmarks.studies.glyphs

plans, trains and tests; the same command continues after an interruption of any kind. Tables,
weights and results lie in ``--work``; when nothing is left to do, the results are copied to
``docs/results/data`` and ``python -m benchmarks.studies.report`` makes the page of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import yaml

from benchmarks.studies.arms import ARMS
from benchmarks.studies.command import conduct, shared_parser
from benchmarks.studies.journal import Journal
from benchmarks.studies.planning import TableJob, make_latencies, make_plans, make_table, tables_of
from benchmarks.studies.settings import NETWORKS, ROOT, Network, Settings
from benchmarks.studies.testing import make_tests
from benchmarks.studies.training import JOURNAL, Training, done_trainings, due, train
from benchmarks.studies.workers import Clock, run_jobs
from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import UsageError

PUBLISHED = ROOT / "docs" / "results" / "data" / "glyphs.jsonl"
UNTIL = ("tables", "plan", "train", "test")

Job = TableJob | Training
Tell = Callable[[str], None]


def perform(settings: Settings, job: Job, clock: Clock) -> Json:
    """Does one job on one thread, perhaps in a process of its own."""
    torch.set_num_threads(1)
    if isinstance(job, TableJob):
        return make_table(settings, job, clock)
    return train(settings, job, clock)


def run_study(
    settings: Settings,
    workers: int = 1,
    clock: Clock | None = None,
    until: str = "test",
    tell: Tell = print,
) -> Journal:
    """Returns the results when nothing is left to do.

    Raises:
        OutOfTimeError: If the time is over first; what was done is on the disk.
        UsageError: If the folder was begun with other settings.
    """
    clock = clock or Clock()
    journal = Journal.open(settings.work / JOURNAL, "glyphs", settings.identity())
    for network in settings.networks:
        note_network(settings, network, journal)
        tell(f"{network.name}: latencies")
        make_latencies(settings, network, clock)
    study = _Study(settings, journal, clock, until, tell, workers)
    study.plan()
    run_jobs(study.pending, partial(perform, settings), study.record, workers, clock)
    for network in settings.networks if until == "test" else ():
        make_tests(settings, network, journal, clock)
    return journal


class _Study:
    """What is left to do, and who is told."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        clock: Clock,
        until: str,
        tell: Tell,
        workers: int,
    ) -> None:
        self._settings, self._journal, self._clock = settings, journal, clock
        self._until, self._tell, self._workers = until, tell, workers

    def _missing_tables(self) -> list[TableJob]:
        done = {(row["network"], row["tables"]) for row in self._journal.of("table")}
        tables = tables_of(self._settings)
        wanted = [TableJob(n.name, t) for t in tables for n in self._settings.networks]
        return [job for job in wanted if (job.network, job.tables) not in done]

    def pending(self) -> list[Job]:
        """Returns tables first, the paper's before ours, then trainings."""
        tables = self._missing_tables()
        if self._until in ("tables", "plan"):
            return list(tables)
        done = done_trainings(self._journal.rows)
        return [*tables, *due(self._settings, self._journal.of("plan"), done)[0]]

    def plan(self) -> None:
        """Finds the plans of networks whose tables are complete."""
        if self._until == "tables":
            return
        waiting = {job.network for job in self._missing_tables()}
        for network in self._settings.networks:
            if network.name not in waiting:
                make_plans(self._settings, network, self._journal, self._clock)

    def record(self, job: Job, row: Json) -> None:
        """Writes a result, tells it, and plans what can be planned by it."""
        if isinstance(job, TableJob):
            self._journal.add(kind="table", **row)
            self._tell(f"{job.network} {job.tables}: {row['entries']} entries scored")
            self.plan()
            return
        self._journal.add(**row)
        self._tell(self._progress(job, row))

    def _progress(self, job: Training, row: Json) -> str:
        done = done_trainings(self._journal.rows)
        missing, total = due(self._settings, self._journal.of("plan"), done)
        took = {
            n.name: [r["seconds"] for r in done.values() if r["network"] == n.name]
            for n in self._settings.networks
        }
        known = [t for times in took.values() for t in times]
        left = max(total - len(done), len(missing))
        seconds = left * sum(known) / len(known) / self._workers
        names = "/".join(
            dict.fromkeys(p["arm"] for p in self._journal.of("plan") if p["plan"] == job.plan)
        )
        return (
            f"[{len(done)}/{max(total, len(done))}] {job.network} {names} seed {job.seed} "
            f"rate {job.rate:g}: val {row['start_val']:.1%} -> {row['val']:.1%} in "
            f"{row['seconds']:.0f} s; about {seconds / 60:.0f} minutes left"
        )


def note_network(settings: Settings, network: Network, journal: Journal) -> None:
    """Writes down what a network's results depend on, or refuses what it was begun with.

    Raises:
        UsageError: If that was something else.
    """
    facts = settings.facts(network)
    for row in journal.of("network"):
        if row["network"] == network.name:
            other = [key for key in facts if row.get(key) != facts[key]]
            if other:
                raise UsageError(
                    f"{journal.path} has results of {network.name} with another "
                    f"{', '.join(other)}; choose another folder (--work DIR)"
                )
            return
    journal.add(kind="network", **facts)


def settings_of(options: argparse.Namespace) -> Settings:
    """Returns the study that was asked for."""
    arms = {arm.name: arm for arm in ARMS}
    epochs = dict(part.rpartition("=")[::2] for part in options.epochs)
    networks = [
        replace(n, epochs=int(epochs.get(n.name) or epochs.get("") or n.epochs))
        for n in NETWORKS
        if n.name in options.networks
    ]
    return Settings(
        work=options.work,
        networks=tuple(networks),
        arms=tuple(arms[name] for name in options.only),
        speedups=tuple(options.speedups),
        seeds=tuple(options.seeds),
        rates=tuple(options.rates),
        data=options.data.resolve() if options.data else None,
        changes=dict(map(_setting, options.set)),
    )


def _setting(text: str) -> tuple[str, object]:
    """Returns key and value of ``KEY=VALUE``. Raises ``UsageError`` if it is none."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set takes KEY=VALUE with a key of the recipe, not {text!r}")
    return key, yaml.safe_load(value)


def parser() -> argparse.ArgumentParser:
    """Returns what can be typed."""
    found = shared_parser("glyphs", __doc__, PUBLISHED)
    names, default = [arm.name for arm in ARMS], [arm.name for arm in ARMS if arm.default]
    add = found.add_argument
    add("--only", nargs="+", choices=names, default=default, metavar="ARM", help=", ".join(names))
    add("--speedups", nargs="+", type=float, default=[1.5, 2.0], metavar="X")
    add("--rates", nargs="+", type=float, default=[0.002, 0.006, 0.018], metavar="R")
    add("--epochs", nargs="+", default=[], metavar="[NAME=]N", help="of each training")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="in both recipes")
    add("--until", choices=UNTIL, default="test", help="the last phase")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study; returns 0 when it is complete, 1 on an error and 3 when time was over."""
    options = parser().parse_args(arguments)
    tell: Tell = partial(print, flush=True)

    def work(clock: Clock) -> Journal | None:
        journal = run_study(settings_of(options), options.workers, clock, options.until, tell)
        return journal if options.until == "test" else None

    return conduct(options, work)


if __name__ == "__main__":
    raise SystemExit(main())
