"""Injects faults of every kind and tells what comes of them: ``python -m benchmarks.faults``.

Hours on one core; ``--quick`` takes a minute, ``--only kills=20 limits`` some kinds. Seeded, and
resumable: what is in the journal is not done again. Ends with 1 where anything came out badly.
``--record`` writes ``docs/results/faults.md``; families that were not run stay as recorded.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.faults.attacks import attack_trials
from benchmarks.faults.campaign import BAD, Trial, reader_trials, verb_trials
from benchmarks.faults.candidates import candidate_trials
from benchmarks.faults.kills import kill_trials
from benchmarks.faults.limits import crowd_trials, limit_trials
from benchmarks.faults.page import PAGE, shortened
from benchmarks.faults.payloads import payload_trials
from benchmarks.studies.journal import Journal
from trt_layermerge.core.jsonio import read_lines

MEMORY_BYTES = 4 << 30


class Family(NamedTuple):
    """Faults of one kind: how they are made, and how many: in all, and for a sample."""

    trials: Callable[[Path, int], Iterator[Trial]]
    whole: int
    quick: int


FAMILIES = {  # those that fork come first: nothing may have been computed before
    "kills": Family(kill_trials, 208, 13),
    "limits": Family(limit_trials, 52, 13),
    "crowds": Family(crowd_trials, 26, 4),
    "candidates": Family(candidate_trials, 120, 24),
    "attacks": Family(attack_trials, 1000, 50),
    "payloads": Family(payload_trials, 100, 2),
    "readers": Family(reader_trials, 460, 5),
    "verbs": Family(verb_trials, 25, 1),
}
"""``payloads``: at how many doors each; ``readers`` and ``verbs``: how many for each of them."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the campaign; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/faults"), metavar="DIR")
    parser.add_argument("--only", nargs="+", default=list(FAMILIES), metavar="KIND[=N]")
    parser.add_argument("--quick", action="store_true", help="a sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write the page")
    options = parser.parse_args(arguments)
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY_BYTES, most))  # bombs: MemoryError
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    journal = Journal.open(work / "faults.jsonl", "faults", {"seed": options.seed})
    done = {(row["trial"], row["number"]) for row in journal.of("trial")}
    wanted = dict(asked.partition("=")[::2] for asked in options.only)
    for name, family in FAMILIES.items():
        if name not in wanted:
            continue
        count = int(wanted[name] or (family.quick if options.quick else family.whole))
        for trial in family.trials(work, count):
            if (trial.name, trial.number) in done:
                continue
            row = {"family": name, **trial.row(options.seed)}
            journal.add(kind="trial", **row)
            if row["outcome"] in BAD:
                print(
                    f"{row['outcome']}: {row['trial']} {row['number']}: {row['said']}", flush=True
                )
    rows = shortened(journal.of("trial"))
    done_now = dict.fromkeys(row["family"] for row in journal.of("trial"))
    commits = {family: journal.commits(family=family) for family in done_now}
    header = {"note": "", "seed": options.seed, "commits": commits}
    if options.record:
        header, recorded = read_lines(PAGE.data, PAGE.name)
        rows += [row for row in recorded if row["family"] not in commits]
        commits = {**header["commits"], **commits}
        every = ", ".join(dict.fromkeys(", ".join(commits.values()).split(", ")))
        header = {**header, "seed": options.seed, "commit": every, "commits": commits}
        PAGE.record({"seed": options.seed, "commit": every, "commits": commits}, rows)
    print(PAGE.text(header, rows))
    return int(any(row["outcome"] in BAD for row in journal.of("trial")))


if __name__ == "__main__":
    sys.exit(main())
