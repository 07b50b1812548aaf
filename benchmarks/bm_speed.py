"""Speed of the pieces that a run is made of, beside a recorded baseline.

Run as ``python -m benchmarks``; half a minute on a quiet machine. Prints the processor time of
each piece, the baseline's, and their ratio, divided by that of a reference that nothing in this
project changes: machines differ. Exit code 1 if a piece takes more than twice as long. With
``--record`` it writes the baseline, ``docs/results/data/speed.jsonl``, and
``docs/results/speed.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.results import Page, measured_by
from benchmarks.workloads import REFERENCE, WORKLOADS, Workload
from trt_layermerge.core.jsonio import Json, read_lines
from trt_layermerge.errors import UsageError

LIMIT = 2.0
REPEATS, SECONDS = 10, 3.0
"""Repeats of a piece of work, and seconds of processor time after which no other begins."""


@dataclass(frozen=True)
class Comparison:
    """A piece of work beside its baseline.

    Attributes:
        name: What it is.
        ms: Processor time of an item now.
        before_ms: That of the baseline.
        ratio: How often as long it takes, relative to the reference.
    """

    name: str
    ms: float
    before_ms: float
    ratio: float

    @property
    def slower(self) -> bool:
        """Whether it became too slow."""
        return self.ratio > LIMIT

    def __str__(self) -> str:
        told = f"{self.name:40} {self.ms:9.3f} ms {self.before_ms:9.3f} ms {self.ratio:6.2f}x"
        return f"{told}  SLOWER" if self.slower else told


def compare(
    found: Mapping[str, float], before: Mapping[str, float], reference: str
) -> list[Comparison]:
    """Returns every piece of work beside its baseline, relative to the reference.

    Raises:
        UsageError: If the baseline has other pieces.
    """
    if found.keys() != before.keys():
        other = ", ".join(sorted(found.keys() ^ before.keys()))
        raise UsageError(
            f"the baseline has other pieces of work ({other}); record it anew: "
            "python -m benchmarks --record"
        )
    machine = found[reference] / before[reference]
    return [Comparison(n, ms, before[n], ms / before[n] / machine) for n, ms in found.items()]


def measure(workloads: Sequence[Workload]) -> Iterator[Json]:
    """Yields ms of processor time that an item of each work takes, the best of its repeats."""
    for workload in workloads:
        work, items = workload.prepare()
        work()
        times: list[float] = []
        while len(times) < REPEATS and sum(times) < SECONDS:
            started = time.process_time()
            work()
            times.append(time.process_time() - started)
        yield {
            "name": workload.name,
            "ms": 1e3 * min(times) / items,
            "items": items,
            "repeats": len(times),
        }


HEAD = """\
# Speed of the pieces

{origin}

Milliseconds of processor time of an item on one thread, the best of the repeats. The networks \
have random weights. `python -m benchmarks` compares with these figures. How many images a second \
are loaded while a network trains stands in [loading](loading.md).

| what | ms | items | repeats |
|---|---|---|---|
"""


def text(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    lines = [f"| {r['name']} | {r['ms']:.3g} | {r['items']} | {r['repeats']} |\n" for r in rows]
    return HEAD.format(origin=measured_by("bm_speed --record", header)) + "".join(lines)


PAGE = Page("speed", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and compares, or records; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--record", action="store_true", help="write the baseline and its page")
    record = parser.parse_args(arguments).record
    torch.set_num_threads(1)
    rows = list(measure(WORKLOADS))
    if record:
        PAGE.record({}, rows)
        print(PAGE.read())
        return 0
    baseline = read_lines(PAGE.data, PAGE.name)[1]
    found, before = ({row["name"]: row["ms"] for row in table} for table in (rows, baseline))
    comparisons = compare(found, before, REFERENCE.name)
    print(*comparisons, sep="\n")
    return int(any(comparison.slower for comparison in comparisons))


if __name__ == "__main__":
    raise SystemExit(main())
