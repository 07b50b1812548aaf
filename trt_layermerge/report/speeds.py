"""Both networks at every precision, and what must be known of the figures."""

from __future__ import annotations

from collections.abc import Callable

from trt_layermerge.report import text
from trt_layermerge.report.data import Pairing, RunReport, Timing
from trt_layermerge.report.document import Bullets, Part, Section, Table

Column = tuple[str, Callable[[Timing], str]]

ALWAYS: tuple[Column, ...] = (
    ("median", lambda t: text.milliseconds(t.p50_ms)),
    ("90 %", lambda t: text.milliseconds(t.p90_ms)),
    ("99 %", lambda t: text.milliseconds(t.p99_ms)),
    ("images / s", lambda t: text.count(t.throughput)),
)
WHERE_READ: tuple[tuple[str, str, Callable[[Timing], str]], ...] = (
    ("enqueue_ms", "launch", lambda t: text.milliseconds(t.enqueue_ms)),
    ("power_w", "power", lambda t: text.quantity(t.power_w, "W")),
    ("energy_mj", "energy / run", lambda t: text.quantity(t.energy_mj, "mJ")),
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
    timed = [t for pairing in bench.pairings for t in (pairing.original, pairing.merged)]
    read = [
        (name, show)
        for field, name, show in WHERE_READ
        if any(getattr(t, field) is not None for t in timed)
    ]
    columns = (*ALWAYS, *read)
    rows = tuple(row for pairing in bench.pairings for row in _rows(pairing, columns))
    head = ("precision", "network", *(name for name, _ in columns), "speed-up")
    parts: list[Part] = [Table(head, rows, tuple(range(2, len(head))))]
    if bench.notes:
        parts.append(Bullets(bench.notes))
    return (Section("speeds", "Speed at every precision", tuple(parts)),)


def _rows(pairing: Pairing, columns: tuple[Column, ...]) -> tuple[tuple[str, ...], ...]:
    spread = f"{text.ratio(pairing.low)} to {text.ratio(pairing.high)}"
    original, merged = (
        tuple(show(side) for _, show in columns) for side in (pairing.original, pairing.merged)
    )
    return (
        (pairing.precision, "original", *original, ""),
        ("", "merged", *merged, f"{text.ratio(pairing.speedup)} ({spread})"),
    )
