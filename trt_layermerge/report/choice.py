"""The plans to choose from: a row of a table for each, which the slider of the page walks over."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from trt_layermerge.errors import command
from trt_layermerge.report import text
from trt_layermerge.report.chain import look_of_kind
from trt_layermerge.report.data import Look, RunReport, Stop
from trt_layermerge.report.plots import frontier_frame

HEAD = ("predicted speed-up", "predicted", "measured", "expected loss", "layers", "what goes")


class Row(NamedTuple):
    """One plan.

    ``cells`` stand below ``HEAD``; ``states`` are the classes of every unit's box; ``x`` and ``y``
    say where the plot of the frontier has it, in %.
    """

    cells: tuple[str, ...]
    states: tuple[str, ...]
    command: str
    x: float
    y: float
    chosen: bool

    @property
    def words(self) -> str:
        """The plan in one sentence, to be read out."""
        speedup, predicted, _, loss, layers, goes = self.cells
        which = ", the chosen plan" if self.chosen else ""
        return f"{speedup}, {predicted}, expected loss {loss}, {layers} layers{which}; {goes}"


def looks_of(report: RunReport) -> tuple[Look, ...]:
    """Returns how the kinds that any plan uses appear, in a fixed order."""
    kinds = sorted({change.kind for stop in report.stops for change in stop.changes})
    return tuple(dict.fromkeys(look_of_kind(kind, report.kinds) for kind in kinds))


def rows_of(report: RunReport) -> tuple[Row, ...]:
    """Returns the plans to choose from, none where there are fewer than two."""
    stops = [s for s in report.stops if math.isfinite(s.latency_ms + s.score) and s.latency_ms > 0]
    frame = frontier_frame(report.frontier, report.untouched, stops)
    original = report.summary.get("original", {}).get("latency_ms")
    original = original or (report.untouched or (None,))[0]
    if len(stops) < 2 or frame is None or not text.is_positive(original):
        return ()
    x, y, top = frame
    looks = looks_of(report)

    def row(stop: Stop) -> Row:
        speedup, loss = original / stop.latency_ms, top - stop.score
        units = len(report.graph.units)
        left = units + sum(c.convs - (c.end - c.start) for c in stop.changes)
        asked = f"{max(1.01, math.floor(100 * speedup) / 100):.2f}"
        return Row(
            (
                text.ratio(speedup),
                text.milliseconds(stop.latency_ms),
                text.milliseconds(stop.measured_ms),
                f"{max(0.0, loss):.3g}",
                f"{units} → {left}",
                _goes(stop, report),
            ),
            tuple(_states(stop, report, looks)),
            command("run", report.folder, "--speedup", asked),
            max(x.begin, x(stop.latency_ms)),
            max(y.end, y(loss)),
            stop.chosen,
        )

    return tuple(map(row, stops))


def _goes(stop: Stop, report: RunReport) -> str:
    """Returns which units are replaced by what: ``merged exactly: 1–2, 9; left out: 3``."""
    spans: dict[str, list[str]] = {}
    for c in stop.changes:
        span = "–".join(map(str, dict.fromkeys((c.start, c.end - 1))))
        spans.setdefault(look_of_kind(c.kind, report.kinds).label, []).append(span)
    return "; ".join(f"{label}: {', '.join(found)}" for label, found in spans.items()) or "nothing"


def _states(stop: Stop, report: RunReport, looks: tuple[Look, ...]) -> Iterable[str]:
    """Yields the classes of every unit's box.

    ``kN`` is its kind's number among the looks; ``first`` and ``last`` are the ends of its block,
    and ``gone`` says that nothing of it is kept.
    """
    changes = {index: c for c in stop.changes for index in range(c.start, c.end)}
    for index in range(len(report.graph.units)):
        if (c := changes.get(index)) is None:
            yield ""
            continue
        flags = {
            f"k{looks.index(look_of_kind(c.kind, report.kinds))}": True,
            "first": index == c.start,
            "last": index == c.end - 1,
            "gone": index not in c.kept and not (c.convs and not c.kept),
        }
        yield " ".join(name for name, holds in flags.items() if holds)
