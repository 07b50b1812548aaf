"""2,000 random small networks, planned at random: each is refused or certified, none is wrong.

Run as ``python -m benchmarks.bm_fuzz --record``; about half an hour on one core. The tests check
the first hundred. A run that is interrupted goes on where it was. Writes
``docs/results/fuzz.md``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.results import Page, measured_by
from benchmarks.studies.journal import Journal
from tests.merge.random_networks import check
from trt_layermerge.core.jsonio import Json

SEEDS = 2000

HEAD = """\
# Random networks

{origin}

Small networks drawn at random ([how](../../tests/merge/random_networks.py)): odd and even sizes, \
strides, dilation and groups, nested and overlapping residuals, several branches, \
squeeze-and-excitation, concatenation, group normalisation, modules that run twice or write in \
place, two inputs, nested outputs. For each, up to five plans: the untouched one, which must \
compute what the network does, and random ones, which must be certified in float32 and in float64; \
among them removals and fits of pieces that are not understood.

| drawn | cannot run | refused | certified | wrong | plans | pieces left out | pieces fitted |
|---|---|---|---|---|---|---|---|
| {drawn} | {none} | {refused} | {certified} | {wrong} | {plans} | {left_out} | {fitted} |

{faults}
"""


def counted(rows: list[Json]) -> list[Json]:
    """Returns how many networks came to what, and then those that are wrong."""
    kinds = Counter(row["kind"] for row in rows)
    counts: Json = {kind: kinds[kind] for kind in ("none", "refused", "certified", "wrong")}
    counts |= {key: sum(row[key] for row in rows) for key in ("plans", "left_out", "fitted")}
    return [{"drawn": len(rows), **counts}, *(row for row in rows if row["kind"] == "wrong")]


def text(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    counts, *wrong = rows
    faults = "\n".join(f"- seed {row['seed']}: {row['wrong']}" for row in wrong)
    return HEAD.format(
        origin=measured_by("bm_fuzz --record", header),
        faults=faults or "*Cannot run*: the map became too small for a kernel.",
        **counts,
    )


PAGE = Page("fuzz", text)


def look_at(seed: int) -> Json:
    """Returns what became of a network; an error that is none of ours counts as wrong."""
    try:
        return {"seed": seed, **asdict(check(seed))}
    except Exception as error:  # what must not happen is told, not hidden
        wrong = f"{type(error).__name__}: {error}"[:300]
        return {
            "seed": seed,
            "kind": "wrong",
            "plans": 0,
            "left_out": 0,
            "fitted": 0,
            "wrong": wrong,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks every network that was not checked yet; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bm_fuzz", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many networks")
    parser.add_argument("--work", type=Path, default=Path("runs/fuzz.jsonl"))
    parser.add_argument("--record", action="store_true", help="write the page")
    given = parser.parse_args(arguments)
    given.work.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal.open(given.work, "fuzz", {})
    done = {row["seed"] for row in journal.rows if "seed" in row}
    for seed in range(given.seeds):
        if seed not in done:
            row = look_at(seed)
            journal.add(**row)
            if row["kind"] == "wrong":
                print(f"seed {seed}: {row['wrong']}", flush=True)
    rows = sorted((row for row in journal.rows if "seed" in row), key=lambda row: row["seed"])
    if given.record:
        PAGE.record({"commit": journal.commits()}, counted(rows))
    return int(any(row["kind"] == "wrong" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
