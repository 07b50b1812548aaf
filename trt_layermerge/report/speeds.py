"""Both networks at every precision, and what must be known of the figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from trt_layermerge.report import text
from trt_layermerge.report.data import Pairing, RunReport, Timing
from trt_layermerge.report.document import Bullets, Part, Section, Table

Column = tuple[str, Callable[[Timing], str]]

LATENCY: tuple[Column, ...] = (
    ("median", lambda t: text.milliseconds(t.p50_ms)),
    ("90 %", lambda t: text.milliseconds(t.p90_ms)),
    ("99 %", lambda t: text.milliseconds(t.p99_ms)),
    ("images / s", lambda t: text.count(t.throughput)),
)
COST: tuple[tuple[str, str, Callable[[Timing], str]], ...] = (
    ("enqueue_ms", "launch by the host", lambda t: text.milliseconds(t.enqueue_ms)),
    ("power_w", "power", lambda t: text.quantity(t.power_w, "W")),
    ("energy_mj", "energy of a run", lambda t: text.quantity(t.energy_mj, "mJ")),
)
"""Columns that are left out where nothing of the kind was read."""


def notices(report: RunReport) -> tuple[str, ...]:
    """Returns the mark of latencies that do not compare; the speed-up does, it is paired."""
    if report.bench is None or report.bench.reason is None:
        return ()
    return (
        "the latencies of this page do not compare with those of other measurements: "
        f"{report.bench.reason}. Speed-ups do: both networks were timed in the same rounds.",
    )


def speeds(report: RunReport) -> tuple[Section, ...]:
    """Returns the section of all precisions; nothing where none was timed on its own."""
    bench = report.bench
    if bench is None or not bench.pairings:
        return ()
    parts: list[Part] = [_latencies(bench.pairings), *_costs(bench.pairings)]
    if bench.notes:
        parts.append(Bullets(bench.notes))
    return (Section("speeds", "Speed at every precision", tuple(parts)),)


def _latencies(pairings: Sequence[Pairing]) -> Table:
    head = ("precision", "network", *(name for name, _ in LATENCY), "speed-up")
    rows = [
        (*cells, speedup)
        for pairing in pairings
        for cells, speedup in zip(_rows(pairing, LATENCY), ("", _speedup(pairing)), strict=True)
    ]
    return Table(head, tuple(rows), tuple(range(2, len(head))))


def _costs(pairings: Sequence[Pairing]) -> Iterator[Table]:
    """Yields a table of what launching takes and power is drawn, where any of it was read."""
    timed = [side for pairing in pairings for side in (pairing.original, pairing.merged)]
    read = tuple(
        (name, show)
        for field, name, show in COST
        if any(getattr(side, field) is not None for side in timed)
    )
    if read:
        head = ("precision", "network", *(name for name, _ in read))
        rows = tuple(row for pairing in pairings for row in _rows(pairing, read))
        yield Table(head, rows, tuple(range(2, len(head))))


def _rows(pairing: Pairing, columns: Sequence[Column]) -> Iterator[tuple[str, ...]]:
    named = ((pairing.precision, "original"), pairing.original), (("", "merged"), pairing.merged)
    for names, side in named:
        yield *names, *(show(side) for _, show in columns)


def _speedup(pairing: Pairing) -> str:
    spread = f"{text.ratio(pairing.low)} to {text.ratio(pairing.high)}"
    return f"{text.ratio(pairing.speedup)} ({spread})"
