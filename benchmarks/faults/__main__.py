"""Damages files and tells what comes of it: ``python -m benchmarks.faults``.

Seeded, and resumable: what is in the journal is not done again. Ends with 1 where anything was
neither the same nor refused.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections import Counter
from pathlib import Path

from benchmarks.faults.campaign import BAD, counted, reader_trials, verb_trials
from benchmarks.studies.journal import Journal
from trt_layermerge.core.jsonio import Json

MEMORY_BYTES = 12 << 30


def main(arguments: list[str] | None = None) -> int:
    """Runs the campaign; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/faults"), metavar="DIR")
    parser.add_argument("--readers", type=int, default=500, metavar="N", help="for each reader")
    parser.add_argument("--verbs", type=int, default=50, metavar="N", help="for each verb")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, most))  # a bomb shows as MemoryError
    options.work.mkdir(parents=True, exist_ok=True)
    journal = Journal.open(options.work / "faults.jsonl", "faults", {"seed": options.seed})
    done = {(row["trial"], row["number"]) for row in journal.of("trial")}
    for trials in (
        reader_trials(options.work, options.readers),
        verb_trials(options.work, options.verbs),
    ):
        for trial in trials:
            if (trial.name, trial.number) not in done:
                journal.add(kind="trial", **trial.row(options.seed))
    rows = journal.of("trial")
    print(table(rows))
    return int(any(row["outcome"] in BAD for row in rows))


def table(rows: list[Json]) -> str:
    """Returns the outcomes as a table, the faults below it."""
    names = ("same", "another value", "refused", *BAD)
    found = counted(rows)
    total = sum(found.values(), Counter[str]())
    lines = [f"| file | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for trial, counts in [*found.items(), ("all", total)]:
        lines.append(f"| {trial} | {' | '.join(str(counts[name]) for name in names)} |")
    faults = [row for row in rows if row["outcome"] in BAD]
    lines += [f"{r['outcome']}: {r['trial']} {r['number']}: {r['said']}" for r in faults[:40]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
