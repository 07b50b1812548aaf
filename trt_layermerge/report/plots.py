"""The plots of a run: pure functions from plain numbers to small, deterministic SVG.

Values that are not finite are left out. A plot without any value is None, and the pages say so in
a sentence. matplotlib is imported when the first plot is drawn, without a display and without its
global state.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import MissingDependencyError
from trt_layermerge.report import text
from trt_layermerge.report.data import Accuracy, Bench, Epoch, Finalist, Point
from trt_layermerge.report.palette import BLUE, GRID, INK, MUTED, ORANGE, RED, STONE, SURFACE
from trt_layermerge.report.templates import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 960
MAX_POINTS = 500
POINTS_PER_INCH = 72
STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "figure.constrained_layout.h_pad": 0.13,
    "figure.constrained_layout.w_pad": 0.13,
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "grid.color": GRID,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def _draw(
    name: str, width: float, height: float, label: str, paint: Callable[[Figure], None]
) -> str:
    """Returns the SVG of what ``paint`` draws on a figure of ``width`` by ``height`` pixels.

    ``name`` makes the identifiers inside unique among the pictures of a page. The same calls give
    the same text, with one version of matplotlib.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "drawing the plots", "report") from error
    stream = StringIO()
    with style.context(["default", {**STYLE, "svg.hashsalt": name}]):
        inches = (width / POINTS_PER_INCH, height / POINTS_PER_INCH)
        figure = Figure(figsize=inches, layout="constrained")
        paint(figure)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=nothing)
    svg = stream.getvalue()
    body = svg[svg.index("</defs>") + len("</defs>") : svg.rindex("</svg>")]  # after a page's style
    used = set(re.findall(r'["(]#([^")]+)[")]', body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    body = re.sub(r"<!--.*?-->\n?| font-family: 'DejaVu Sans';", "", body)
    return render("picture.svg", width=width, height=height, label=label, body=Markup(body))


def _finite(*values: float | None) -> bool:
    return all(v is not None and math.isfinite(v) for v in values)


def _note(axes: Axes, words: str, spot: Point, offset: Point, side: str, colour: str) -> None:
    """Writes a label beside a spot, ``offset`` in points, on a ground that keeps it readable."""
    ground = {"facecolor": SURFACE, "edgecolor": "none", "pad": 1.0, "alpha": 0.75}
    look: dict[str, Any] = {"color": colour, "ha": side, "fontweight": "bold", "bbox": ground}
    axes.annotate(words, spot, xytext=offset, textcoords="offset points", **look)


def frontier_plot(
    points: Sequence[Point],
    untouched: Point | None,
    plan: MergePlan,
    finalists: Sequence[Finalist],
) -> str | None:
    """Returns the non-dominated plans, what was chosen, and where the finalists measured.

    The worst plans are left out where they would squeeze the rest: the scores drawn reach from the
    best to four times as far below it as the chosen plan. Of more than ``MAX_POINTS`` plans,
    every n-th is drawn, and the last.

    Args:
        points: Predicted latency and score of the plans.
        untouched: The same of the original network.
        plan: What was chosen, and the budget.
        finalists: Plans that were measured, each tied to where it was predicted.
    """
    every = sorted((ms, score) for ms, score in points if _finite(ms, score))
    if not every:
        return None
    best = max(score for _, score in every)
    chosen = (plan.latency_ms or math.nan, math.nan if plan.score is None else plan.score)
    reach = 4 * (best - chosen[1]) if _finite(*chosen) else math.inf
    shown = [(ms, score) for ms, score in every if reach <= 0 or score >= best - reach]
    every_finalist = [(f.predicted_ms, f.measured_ms, f.score) for f in finalists]
    built = [row for row in every_finalist if _finite(*row)]
    shown = shown[:: len(shown) // MAX_POINTS + 1] + shown[-1:]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set(xlabel="predicted latency, ms", ylabel="score (higher is better)")
        latencies, scores = zip(*shown, strict=True)
        axes.step(latencies, scores, where="post", color=STONE, label="best plan at a latency")
        if built:
            label = "finalist as measured, tied to its prediction"
            predicted, measured, goodness = zip(*built, strict=True)
            axes.hlines(goodness, predicted, measured, color=ORANGE, linewidth=1.2)
            axes.plot(measured, goodness, "D", color=ORANGE, markeredgecolor=INK, label=label)
        if untouched and _finite(*untouched):
            axes.plot(*untouched, "s", color=INK, markersize=7)
            _note(axes, "original", untouched, (-9, -16), "right", INK)
        if plan.budget_ms is not None and _finite(plan.budget_ms):
            axes.axvline(plan.budget_ms, color=RED, linestyle="--", linewidth=1.4)
            corner = (plan.budget_ms, axes.get_ylim()[0])
            _note(axes, f"budget {text.milliseconds(corner[0])}", corner, (6, 8), "left", RED)
        if _finite(*chosen):
            axes.plot(*chosen, "*", color=BLUE, markersize=16, markeredgecolor=INK)
            words = f"chosen {text.milliseconds(chosen[0])}"
            _note(axes, words, chosen, (-10, 12), "right", BLUE)
        axes.margins(y=0.12)
        axes.legend(loc="lower right", labelcolor=INK)

    return _draw("frontier", WIDTH, 430, "Score against predicted latency", paint)


def prediction_plot(finalists: Sequence[Finalist]) -> str | None:
    """Returns measured against predicted latency, with the diagonal and bands of 5 and 10 %."""
    shown = [
        f for f in finalists if text.is_positive(f.predicted_ms) and text.is_positive(f.measured_ms)
    ]
    if not shown:
        return None
    values = [v for f in shown for v in (f.predicted_ms, f.measured_ms)]
    low, high = 0.93 * min(values), 1.07 * max(values)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set(xlabel="predicted, ms", ylabel="measured, ms")
        for band, opacity in ((0.10, 0.13), (0.05, 0.2)):
            lower, upper = ([v * (1 + s * band) for v in (low, high)] for s in (-1, 1))
            axes.fill_between([low, high], lower, upper, color=BLUE, alpha=opacity, linewidth=0)
            _note(axes, f"±{band:.0%}", (high, high * (1 - band)), (-3, -4), "right", MUTED)
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1.2)
        for f in shown:
            marker, size, colour = ("*", 15.0, BLUE) if f.chosen else ("o", 6.5, ORANGE)
            spot = (f.predicted_ms, f.measured_ms)
            axes.plot(*spot, marker, color=colour, markersize=size, markeredgecolor=INK)
            if f.chosen:
                _note(axes, "chosen", spot, (10, -14), "left", BLUE)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")

    return _draw("prediction", 580, 540, "Measured against predicted latency", paint)


def finetune_plot(history: Sequence[Epoch], original_accuracy: float | None) -> str | None:
    """Returns loss and validation accuracy over the epochs, beside the original's accuracy."""
    losses = [(e.epoch, e.loss) for e in history if _finite(e.loss)]
    shares = [(e.epoch, 100 * (e.accuracy or 0)) for e in history if _finite(e.accuracy)]
    both = (("training loss", losses, ORANGE), ("validation accuracy, %", shares, BLUE))
    curves = [curve for curve in both if curve[1]]
    if not curves:
        return None

    def paint(figure: Figure) -> None:
        panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, rows, colour) in zip(panels, curves, strict=True):
            axes.set(ylabel=name)
            axes.plot(*zip(*rows, strict=True), "-o", color=colour, markersize=3.5)
            _note(axes, f"{rows[-1][1]:.4g}", rows[-1], (8, -3), "left", colour)
            axes.margins(x=0.08, y=0.15)
            axes.xaxis.get_major_locator().set_params(integer=True)
        if shares and original_accuracy is not None and _finite(original_accuracy):
            level = 100 * original_accuracy
            panels[-1].axhline(level, color=INK, linestyle="--", linewidth=1.2)
            _note(panels[-1], f"original {level:.1f}", (shares[0][0], level), (0, 5), "left", INK)
        panels[-1].set_xlabel("epoch")

    return _draw("finetune", WIDTH, 220 * len(curves) + 20, "Fine-tune curves", paint)


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
