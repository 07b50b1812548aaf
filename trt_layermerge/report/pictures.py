"""The pictures of a run: pure functions from plain numbers to SVG.

Values that are not finite are left out. A plot without any value is None, and the pages say so in
a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from trt_layermerge.report import text
from trt_layermerge.report.canvas import draw, note, quiet_axes
from trt_layermerge.report.chain import chain_picture
from trt_layermerge.report.data import Accuracy, Bench, Epoch, Finalist, FrontierPoint
from trt_layermerge.report.palette import BLUE, GREEN, INK, MUTED, ORANGE, RED, STONE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "chain_picture",
    "comparison_plot",
    "finetune_plot",
    "frontier_plot",
    "prediction_plot",
]

WIDTH = 960
MAX_POINTS = 500
MAX_MARKERS = 120


def _finite(*values: float | None) -> bool:
    return all(v is not None and math.isfinite(v) for v in values)


def frontier_plot(
    points: Sequence[FrontierPoint],
    chosen: FrontierPoint | None,
    original: FrontierPoint | None,
    finalists: Sequence[Finalist],
    budget_ms: float | None,
) -> str | None:
    """Returns the non-dominated plans, what was chosen, and where the finalists measured.

    The worst plans are left out where they would squeeze the rest: the scores drawn reach from the
    best to four times as far below it as the chosen plan. Of more than ``MAX_POINTS`` plans,
    every n-th is drawn, and the last.
    """
    every = sorted((p.latency_ms, p.score) for p in points if _finite(p.latency_ms, p.score))
    if not every:
        return None
    floor = _floor([score for _, score in every], chosen)
    shown = [(ms, score) for ms, score in every if score >= floor]
    shown = shown[:: len(shown) // MAX_POINTS + 1] + shown[-1:]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        quiet_axes(axes, "predicted latency, ms", "score (higher is better)")
        latencies, scores = zip(*shown, strict=True)
        axes.step(latencies, scores, where="post", color=STONE, label="best plan at a latency")
        if len(shown) <= MAX_MARKERS:
            axes.plot(latencies, scores, ".", color=STONE, markersize=3.5)
        _measured_finalists(axes, finalists)
        if original and _finite(original.latency_ms, original.score):
            spot = (original.latency_ms, original.score)
            axes.plot(*spot, "s", color=INK, markersize=7)
            note(axes, "original", spot, (-9, -16), "right", INK)
        if budget_ms is not None and _finite(budget_ms):
            axes.axvline(budget_ms, color=RED, linestyle="--", linewidth=1.4)
            corner = (budget_ms, axes.get_ylim()[0])
            note(axes, f"budget {text.milliseconds(budget_ms)}", corner, (6, 8), "left", RED)
        if chosen and _finite(chosen.latency_ms, chosen.score):
            spot = (chosen.latency_ms, chosen.score)
            axes.plot(*spot, "*", color=BLUE, markersize=16, markeredgecolor=INK)
            note(axes, f"chosen {text.milliseconds(spot[0])}", spot, (-10, 12), "right", BLUE)
        axes.margins(y=0.12)
        axes.legend(loc="lower right", labelcolor=INK)

    return draw("frontier", WIDTH, 430, "Score against predicted latency", paint)


def _floor(scores: Sequence[float], chosen: FrontierPoint | None) -> float:
    """Returns the lowest score that is drawn."""
    if chosen is None or not _finite(chosen.score) or chosen.score >= max(scores):
        return min(scores)
    return max(min(scores), max(scores) - 4 * (max(scores) - chosen.score))


def _measured_finalists(axes: Axes, finalists: Iterable[Finalist]) -> None:
    """Draws each finalist where it measured, tied to where it was predicted."""
    label: str | None = "finalist as measured, tied to its prediction"
    for plan in finalists:
        if plan.score is None or not _finite(plan.predicted_ms, plan.measured_ms, plan.score):
            continue
        ends = [plan.predicted_ms, plan.measured_ms]
        axes.plot(ends, [plan.score] * 2, color=ORANGE, linewidth=1.2)
        axes.plot(plan.measured_ms, plan.score, "D", color=ORANGE, markeredgecolor=INK, label=label)
        label = None


def prediction_plot(finalists: Sequence[Finalist]) -> str | None:
    """Returns measured against predicted latency, with the diagonal and bands of 5 and 10 %."""
    shown = [
        f
        for f in finalists
        if _finite(f.predicted_ms, f.measured_ms) and min(f.predicted_ms, f.measured_ms) > 0
    ]
    if not shown:
        return None
    values = [v for f in shown for v in (f.predicted_ms, f.measured_ms)]
    low, high = 0.93 * min(values), 1.07 * max(values)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        quiet_axes(axes, "predicted, ms", "measured, ms")
        for band, opacity in ((0.10, 0.13), (0.05, 0.2)):
            lower, upper = ([v * (1 + s * band) for v in (low, high)] for s in (-1, 1))
            axes.fill_between([low, high], lower, upper, color=BLUE, alpha=opacity, linewidth=0)
            _band_label(axes, band, high)
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1.2)
        for plan in shown:
            style, size = ("*", 15.0) if plan.chosen else ("o", 6.5)
            colour = BLUE if plan.chosen else ORANGE
            spot = (plan.predicted_ms, plan.measured_ms)
            axes.plot(*spot, style, color=colour, markersize=size, markeredgecolor=INK)
            if plan.chosen:
                note(axes, "chosen", spot, (10, -14), "left", BLUE)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_aspect("equal")

    return draw("prediction", 580, 540, "Measured against predicted latency", paint)


def _band_label(axes: Axes, band: float, high: float) -> None:
    """Names a band where its lower edge leaves the plot on the right."""
    note(axes, f"±{band:.0%}", (high, high * (1 - band)), (-3, -4), "right", MUTED)


def finetune_plot(history: Sequence[Epoch], original_accuracy: float | None) -> str | None:
    """Returns loss and validation accuracy over the epochs, beside the original's accuracy."""
    losses = [(e.epoch, e.loss) for e in history if _finite(e.loss)]
    shares = [
        (e.epoch, 100 * e.accuracy)
        for e in history
        if e.accuracy is not None and _finite(e.accuracy)
    ]
    curves = [
        (name, rows, colour)
        for name, rows, colour in (
            ("training loss", losses, ORANGE),
            ("validation accuracy, %", shares, BLUE),
        )
        if rows
    ]
    if not curves:
        return None

    def paint(figure: Figure) -> None:
        panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, rows, colour) in zip(panels, curves, strict=True):
            quiet_axes(axes, "", name)
            axes.plot(*zip(*rows, strict=True), "-o", color=colour, markersize=3.5)
            note(axes, f"{rows[-1][1]:.4g}", rows[-1], (8, -3), "left", colour)
            axes.margins(x=0.08, y=0.15)
            axes.xaxis.get_major_locator().set_params(integer=True)
        if shares and original_accuracy is not None and _finite(original_accuracy):
            level = 100 * original_accuracy
            panels[-1].axhline(level, color=INK, linestyle="--", linewidth=1.2)
            note(panels[-1], f"original {level:.1f}", (shares[0][0], level), (0, 5), "left", INK)
        panels[-1].set_xlabel("epoch")

    return draw("finetune", WIDTH, 220 * len(curves) + 20, "Fine-tune curves", paint)


def comparison_plot(accuracies: Mapping[str, Accuracy], bench: Bench | None) -> str | None:
    """Returns bars of accuracy with 95 % intervals, and of latency up to its 99th percentile."""
    shares = [(name, a) for name, a in accuracies.items() if _finite(a.value)]
    timings = [] if bench is None else [("original", bench.original), ("merged", bench.merged)]
    timings = [(n, t) for n, t in timings if _finite(t.p50_ms, t.p99_ms)]
    panels = [bool(timings), bool(shares)]
    if not any(panels):
        return None

    def paint(figure: Figure) -> None:
        sizes = [n for n in (len(timings), len(shares)) if n]
        grid = figure.subplots(len(sizes), 1, squeeze=False, height_ratios=sizes)[:, 0]
        if timings:
            rows = [
                (n, t.p50_ms, (t.p50_ms, t.p99_ms), text.milliseconds(t.p50_ms)) for n, t in timings
            ]
            _bars(grid[0], rows, "latency, ms: median, whisker to the 99th percentile")
        if shares:
            rows = [
                (
                    name,
                    100 * a.value,
                    (100 * a.interval[0], 100 * a.interval[1]),
                    f"{text.percent(a.value)}  ({text.percent_interval(a.interval)})",
                )
                for name, a in shares
            ]
            _bars(grid[-1], rows, "accuracy, %: whisker is the 95 % interval")

    height = 46 * (len(timings) + len(shares)) + 68 * sum(panels)
    return draw("comparison", WIDTH, height, "Latency and accuracy before and after", paint)


def _bars(
    axes: Axes, rows: Sequence[tuple[str, float, tuple[float, float], str]], xlabel: str
) -> None:
    """Draws one horizontal bar a row, its whisker, and its value written behind it."""
    quiet_axes(axes, xlabel, "")
    axes.grid(visible=False, axis="y")
    colours = {"original": STONE, "merged": BLUE}
    for place, (name, value, (low, high), words) in enumerate(rows):
        axes.barh(place, value, height=0.6, color=colours.get(name, GREEN), alpha=0.75)
        axes.plot([low, high], [place, place], "|-", color=INK, linewidth=1.3, markersize=9)
        note(axes, words, (max(value, high), place), (8, -4), "left", INK)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.invert_yaxis()
    top = max(max(value, high) for _, value, (_, high), _ in rows) or 1.0
    axes.set_xlim(0, 1.45 * top)
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= 1.12 * top])
