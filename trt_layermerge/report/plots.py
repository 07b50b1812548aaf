"""The plots of a run: pure functions from plain numbers to small, deterministic SVG.

Places are percentages of the picture and sizes of text are pixels, so that a picture is as wide as
its page and its words stay readable on a telephone. Values that are not finite are left out. A plot
without any value is None, and the pages say so in a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from trt_layermerge.report import text
from trt_layermerge.report.data import Accuracy, Bench, Epoch, Finalist, Interval, Point, Stop
from trt_layermerge.report.palette import BLUE, INK, MUTED, ORANGE, RED, STONE
from trt_layermerge.report.templates import render

MAX_POINTS = 200
LEFT, RIGHT, TOP, BOTTOM = 13.0, 97.0, 15.0, 87.0
"""Edges of a frame in % of its picture; what is left of them holds the words of the axes."""


class Tick(NamedTuple):
    """A value of an axis as it is written, and where it stands, in %."""

    place: float
    words: str


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` stand from ``begin`` to ``end`` %; ``label`` names them."""

    label: str
    low: float
    high: float
    begin: float
    end: float
    whole: bool = False

    def __call__(self, value: float) -> float:
        """Returns where a value stands, in %."""
        share = (value - self.low) / ((self.high - self.low) or 1)
        return round(self.begin + share * (self.end - self.begin), 2)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """About four round values."""
        rough = (self.high - self.low) / 4 or abs(self.low) or 1
        unit = 10.0 ** math.floor(math.log10(rough))
        step = unit * next(n for n in (1, 2, 5, 10) if n * unit >= 0.7 * rough)
        step = max(1.0, step) if self.whole else step
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        found = range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
        return tuple(
            Tick(self(n * step), f"{n * step:.{digits}f}".replace("-", "−")) for n in found
        )


class Mark(NamedTuple):
    """A spot in %; ``tip`` tells what it is, a ``shape`` other than ``dot`` is larger."""

    x: float
    y: float
    colour: str
    tip: str
    shape: str = "dot"


class Line(NamedTuple):
    """Spots in %, joined; a filled one is closed and thin of colour."""

    points: tuple[Point, ...]
    colour: str
    width: float = 2.0
    dashes: str = ""
    filled: bool = False


class Note(NamedTuple):
    """Words that begin, end or stand in the middle at a spot in %."""

    x: float
    y: float
    words: str
    anchor: str = "middle"


def _axes(xs: Iterable[float], ys: Iterable[float], labels: tuple[str, str]) -> tuple[Axis, Axis]:
    """Returns the axes that hold all of some values, with a little room around them."""
    (left, right), (low, high) = (_padded(tuple(values)) for values in (xs, ys))
    return Axis(labels[0], left, right, LEFT, RIGHT), Axis(labels[1], low, high, BOTTOM, TOP)


def _padded(values: Sequence[float]) -> Interval:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - room, high + room


def _finite(*values: float | None) -> bool:
    return all(v is not None and math.isfinite(v) for v in values)


class Frame(NamedTuple):
    """Axes of predicted latency and expected loss; ``top`` is the score of the original."""

    x: Axis
    y: Axis
    top: float


def frontier_frame(
    points: Iterable[Point], untouched: Point | None, stops: Iterable[Stop]
) -> Frame | None:
    """Returns the frame that plans stand in; None where there are none.

    Plans that lose far more than the chosen one would squeeze the rest: losses are drawn up to four
    times its own.

    Args:
        points: Predicted latency and score of the plans.
        untouched: The same of the original network.
        stops: Plans to choose from.
    """
    plans = [(s.latency_ms, s.score, s.chosen) for s in stops]
    spots = [*plans, *((*point, False) for point in points)]
    if not (spots := [spot for spot in spots if _finite(*spot[:2])]):
        return None
    top = untouched[1] if untouched and _finite(*untouched) else max(s for _, s, _ in spots)
    limit = max((4 * (top - s) for _, s, chosen in spots if chosen and s < top), default=math.inf)
    latencies, losses = zip(*[(ms, top - s) for ms, s, _ in spots if top - s <= limit], strict=True)
    return Frame(*_axes(latencies, losses, ("predicted latency, ms", "expected loss")), top)


def frontier_plot(
    points: Sequence[Point],
    untouched: Point | None,
    stops: Sequence[Stop],
    budget_ms: float | None,
) -> str | None:
    """Returns what every plan is expected to lose at its latency, and which one was chosen.

    Of more than ``MAX_POINTS`` plans, every n-th is drawn, and the last.

    Args:
        points: Predicted latency and score of the plans.
        untouched: The same of the original network.
        stops: Plans to choose from, the chosen one among them.
        budget_ms: What the run was asked for.
    """
    every = sorted(point for point in points if _finite(*point))
    frame = frontier_frame(every, untouched, stops)
    if not every or frame is None:
        return None
    x, y, top = frame
    thin = every[:: len(every) // MAX_POINTS + 1] + every[-1:]
    shown = [(ms, top - score) for ms, score in thin if top - score <= y.high]
    steps = [(x(ms), y(loss)) for ms, loss in shown]
    corners = [(b[0], a[1]) for a, b in pairwise(steps)]
    stairs = [spot for pair in zip(steps, [*corners, *steps[-1:]], strict=True) for spot in pair]
    marks, notes, lines = [], [], [Line(tuple(stairs), STONE)]
    if budget_ms is not None and x.low <= budget_ms <= x.high:
        lines.append(Line(((x(budget_ms), TOP), (x(budget_ms), BOTTOM)), RED, 1.4, "5 4"))
        notes.append(_beside(x(budget_ms), TOP - 3, f"budget {text.milliseconds(budget_ms)}"))
    for stop in stops:
        loss = top - stop.score
        if not _finite(stop.latency_ms, loss) or loss > y.high:
            continue
        tip = f"predicted {text.milliseconds(stop.latency_ms)}, expected loss {loss:.3g}"
        if stop.chosen:
            tip = f"chosen: {tip}"
            notes.append(_beside(x(stop.latency_ms), y(loss) - 4, "chosen"))
        look = (BLUE, tip, "star") if stop.chosen else (STONE, tip)
        marks.append(Mark(x(stop.latency_ms), y(loss), *look))
    if untouched and _finite(*untouched):
        spot = x(untouched[0]), y(0.0)
        marks.append(Mark(*spot, INK, f"original {text.milliseconds(untouched[0])}", "square"))
        notes.append(_beside(spot[0], spot[1] - 4, "original"))
    return _plot("Expected loss against predicted latency", (x, y), lines, marks, notes)


class Quality(NamedTuple):
    """What a merged network is worth, with its interval, and the original's; in some unit."""

    merged: float
    low: float
    high: float
    original: float | None
    unit: str


def plans_plot(name: str, plans: Sequence[tuple[str, Bench, Quality]]) -> str:
    """Returns quality at measured speed-up, with spreads, and a dashed level of the original.

    Args:
        name: Of the quality.
        plans: What each is called, what was measured of it, and how good it is.
    """
    levels = [kept.original for *_, kept in plans if kept.original is not None]
    xs = [1.0, *(v for _, b, _ in plans for v in (b.low, b.high, b.speedup))]
    ys = [*levels, *(v for *_, kept in plans for v in kept[:3])]
    x, y = _axes(xs, ys, ("measured speed-up", name))
    lines, marks, notes = [], [], []
    if levels:
        lines.append(Line(((LEFT, y(levels[0])), (RIGHT, y(levels[0]))), INK, 1.2, "5 4"))
        notes.append(Note(LEFT + 1, y(levels[0]) - 2, f"original {levels[0]:.4g}", "start"))
    for words, bench, kept in plans:
        spot = x(bench.speedup), y(kept.merged)
        lines.append(Line(((x(bench.low), spot[1]), (x(bench.high), spot[1])), BLUE, 1.4))
        lines.append(Line(((spot[0], y(kept.low)), (spot[0], y(kept.high))), BLUE, 1.4))
        tip = f"{words}; measured {text.ratio(bench.speedup)}, {name} {kept.merged:.4g}"
        marks.append(Mark(*spot, BLUE, tip, "star"))
        side, anchor = (1.2, "start") if spot[0] < 85 else (-1.2, "end")
        notes.append(Note(spot[0] + side, spot[1] - 3, words, anchor))
    return _plot(f"{name} against measured speed-up", (x, y), lines, marks, notes)


def prediction_plot(finalists: Sequence[Finalist]) -> str | None:
    """Returns measured against predicted latency, with the diagonal and bands of 5 and 10 %."""
    shown = [
        f for f in finalists if text.is_positive(f.predicted_ms) and text.is_positive(f.measured_ms)
    ]
    if not shown:
        return None
    values = [v for f in shown for v in (f.predicted_ms, f.measured_ms)]
    low, high = 0.93 * min(values), 1.07 * max(values)
    x = Axis("predicted, ms", low, high, LEFT, RIGHT)
    y = Axis("measured, ms", 0.9 * low, 1.1 * high, BOTTOM, TOP)
    lines, notes = [], []
    for band in (0.10, 0.05):
        corners = [(v, v * (1 + s * band)) for s, v in ((1, low), (1, high), (-1, high), (-1, low))]
        lines.append(Line(tuple((x(a), y(b)) for a, b in corners), BLUE, filled=True))
        notes.append(Note(x(high) - 1, y(high * (1 - band)), f"±{band:.0%}", "end"))
    lines.append(Line(((x(low), y(low)), (x(high), y(high))), MUTED, 1.2))
    marks = []
    for f in sorted(shown, key=lambda f: f.chosen):
        pair = f"predicted {text.milliseconds(f.predicted_ms)}"
        tip = f"{f.label}: {pair}, measured {text.milliseconds(f.measured_ms)}"
        spot, look = (x(f.predicted_ms), y(f.measured_ms)), (BLUE, tip, "star")
        marks.append(Mark(*spot, *(look if f.chosen else (ORANGE, tip))))
        if f.chosen:
            notes.append(_beside(spot[0], spot[1] - 4, "chosen"))
    return _plot("Measured against predicted latency", (x, y), lines, marks, notes)


def finetune_plots(
    history: Sequence[Epoch], original_accuracy: float | None
) -> dict[str, str | None]:
    """Returns training loss, and validation accuracy beside the original's, over the epochs."""
    losses = [(e.epoch, e.loss) for e in history if _finite(e.loss)]
    shares = [(e.epoch, 100 * (e.accuracy or 0)) for e in history if _finite(e.accuracy)]
    level = None if original_accuracy is None else 100 * original_accuracy
    return {
        "accuracy": _curve("validation accuracy, %", shares, BLUE, level),
        "loss": _curve("training loss", losses, ORANGE, None),
    }


def _curve(
    name: str, rows: Sequence[tuple[int, float]], colour: str, level: float | None
) -> str | None:
    """Returns a curve over the epochs, with a dashed level of the original; None without rows."""
    if not rows:
        return None
    level = level if _finite(level) else None
    epochs, values = zip(*rows, strict=True)
    found, y = _axes(epochs, values if level is None else (*values, level), ("epoch", name))
    x = Axis("epoch", found.low, found.high, LEFT, RIGHT, whole=True)
    spots = tuple((x(epoch), y(value)) for epoch, value in rows)
    lines, notes = [Line(spots, colour)], []
    marks = [
        Mark(*spot, colour, f"epoch {epoch}: {name} {value:.4g}")
        for spot, (epoch, value) in zip(spots, rows, strict=True)
    ]
    notes.append(_beside(spots[-1][0], spots[-1][1] - 4, f"{values[-1]:.4g}"))
    if level is not None:
        lines.append(Line(((LEFT, y(level)), (RIGHT, y(level))), INK, 1.2, "5 4"))
        notes.append(Note(LEFT + 1, y(level) - 2, f"original {level:.1f}", "start"))
    return _plot(f"{name} over the epochs", (x, y), lines, marks, notes)


def comparison_plot(accuracies: Mapping[str, Accuracy], bench: Bench | None) -> str | None:
    """Returns bars of latency up to its 99th percentile, and of accuracy with 95 % intervals."""
    timings = [
        (name, t.p50_ms, t.p50_ms, t.p99_ms, text.milliseconds(t.p50_ms))
        for name, t in (bench.sides if bench else ())
        if _finite(t.p50_ms, t.p99_ms)
    ]
    shares = [
        (name, a.value, *a.interval, f"{text.percent(a.value)} ({text.percents(a.interval)})")
        for name, a in accuracies.items()
        if _finite(a.value)
    ]
    both = (
        ("latency: median, whisker to the 99th percentile", timings),
        ("accuracy: whisker is the 95 % interval", shares),
    )
    panels = [(title, rows, max(map(max, (r[1:4] for r in rows)))) for title, rows in both if rows]
    return render("comparison.svg", panels=panels) if panels else None


def _beside(x: float, y: float, words: str) -> Note:
    """Returns words at a spot that do not leave the picture."""
    return Note(x, max(11.0, y), words, "start" if x < 30 else "end" if x > 70 else "middle")


def _plot(
    label: str,
    axes: tuple[Axis, Axis],
    lines: Sequence[Line],
    marks: Sequence[Mark],
    notes: Sequence[Note],
) -> str:
    """Returns the SVG of lines, spots and words in a frame; ``label`` is read out in its place."""
    return render("plot.svg", label=label, axes=axes, lines=lines, marks=marks, notes=notes)
