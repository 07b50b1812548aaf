"""What came out: both networks side by side, what changed, how it was chosen and predicted."""

from __future__ import annotations

from statistics import fmean

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.report import text
from trt_layermerge.report.data import Finalist, RunReport
from trt_layermerge.report.document import Paragraph, Part, Picture, Section, Table
from trt_layermerge.report.pictures import (
    chain_picture,
    comparison_plot,
    frontier_plot,
    prediction_plot,
)


def figure(name: str, svg: str | None, caption: str, otherwise: str) -> Part:
    """Returns a picture, or the sentence that stands in its place."""
    return Paragraph(otherwise) if svg is None else Picture(name, svg, caption)


def comparison(report: RunReport) -> Section:
    """Returns figures of the original and of the merged network, side by side."""
    picture = figure(
        "comparison",
        comparison_plot(report.accuracies, report.bench),
        "Median latency, with a whisker to the 99th percentile, and accuracy with its 95 % "
        "Wilson interval.",
        "Neither latency nor accuracy of the two networks was recorded, so there is no picture.",
    )
    sizes = Table(("", "original", "merged"), (*_sizes(report), *_latencies(report)), (1, 2))
    return Section("comparison", "Before and after", (picture, sizes, _accuracies(report)))


def _sizes(report: RunReport) -> tuple[tuple[str, str, str], ...]:
    graph, plan = report.graph, report.plan
    before, after = graph.convs, plan.convs
    figures = (
        ("convolutions of the chain, projections included", len(before), len(after)),
        ("activations of the chain", graph.activation_count, plan.activation_count),
        (
            "multiply-adds of its convolutions",
            sum(s.macs for s in before),
            sum(s.macs for s in after),
        ),
    )
    return tuple((name, text.count(a), text.count(b)) for name, a, b in figures)


def _latencies(report: RunReport) -> tuple[tuple[str, str, str], ...]:
    bench = report.bench
    if bench is None:
        sides = (report.summary.get(name, {}) for name in ("original", "merged"))
        before, after = (text.milliseconds(side.get("latency_ms")) for side in sides)
        return (("latency", before, after),)
    a, b = bench.original, bench.merged
    return (
        ("latency, median", text.milliseconds(a.p50_ms), text.milliseconds(b.p50_ms)),
        ("latency, 90th percentile", text.milliseconds(a.p90_ms), text.milliseconds(b.p90_ms)),
        ("latency, 99th percentile", text.milliseconds(a.p99_ms), text.milliseconds(b.p99_ms)),
        ("images a second", text.count(a.throughput), text.count(b.throughput)),
    )


def _accuracies(report: RunReport) -> Part:
    if not report.accuracies:
        return Paragraph("Accuracy was not measured, for want of labelled data.")
    rows = tuple(
        (
            name,
            text.percent(found.value, 2),
            text.percent_interval(found.interval),
            text.count(found.images),
        )
        for name, found in report.accuracies.items()
    )
    return Table(("network", "accuracy", "95 % interval", report.accuracy_data), rows, (1, 2, 3))


def changes(report: RunReport) -> Section:
    """Returns the chain before and after, and every block that the plan replaces."""
    picture = Picture(
        "chain",
        chain_picture(report.graph, report.plan),
        "Every convolution as it was, above what runs in its place. Point at a box for the name "
        "and geometry of its unit.",
    )
    changed = report.plan.changed
    if not changed:
        nothing = Paragraph("The plan changes nothing: every unit stays as it was.")
        return Section("changes", "What changed", (picture, nothing))
    rows = tuple(_change(report, candidate) for candidate in changed)
    table = Table(("units", "from", "kind", "kept", "becomes"), rows)
    return Section("changes", "What changed", (picture, table))


def _change(report: RunReport, candidate: Candidate) -> tuple[str, ...]:
    block = candidate.block
    units = report.graph.units[block.start : block.end]
    span = str(block.start) if len(block) == 1 else f"{block.start}–{block.end - 1}"
    names = units[0].name if len(units) == 1 else f"{units[0].name} … {units[-1].name}"
    kept = ", ".join(map(str, candidate.kept)) or "none"
    becomes = " + ".join(str(s) for s in candidate.convs) or "nothing; its input passes on"
    return span, names, candidate.kind, kept, becomes


def selection(report: RunReport) -> Section:
    """Returns the frontier and where the plan of the run stands on it."""
    picture = figure(
        "frontier",
        frontier_plot(
            report.frontier,
            report.chosen,
            report.original_point,
            report.finalists,
            report.plan.budget_ms,
        ),
        "The best score that the tables promise at every latency, on the clock of the search. "
        "Plans far below the chosen one are not drawn.",
        "The frontier of this run was not recorded, so there is no picture of the choice.",
    )
    parts: list[Part] = [picture]
    if report.frontier:
        words = f"The frontier holds {text.count(len(report.frontier))} plans."
        if report.chosen is not None:
            words += (
                f" The chosen one promises {text.milliseconds(report.chosen.latency_ms)} "
                f"at a score of {text.plain(report.chosen.score)}."
            )
        parts.append(Paragraph(words))
    raced = [plan for plan in report.finalists if plan.race]
    if raced:
        parts.append(
            Paragraph(
                f"{text.count(len(raced))} finalists raced: each was trained a little, and the one "
                "that did best was preferred, whatever the tables promise of it."
            )
        )
    return Section("selection", "How the plan was chosen", tuple(parts))


def predictions(report: RunReport) -> Section:
    """Returns predicted beside measured latency of every finalist."""
    heading = "Predicted against measured latency"
    picture = figure(
        "prediction",
        prediction_plot(report.finalists),
        "Plans built whole and measured. On the line, the prediction held; the bands are 5 and "
        "10 % wide on either side.",
        "No plan of this run was built whole and measured, so predictions could not be judged.",
    )
    parts: list[Part] = [picture]
    if report.prediction is not None:
        error = report.prediction
        parts.append(
            Paragraph(
                f"Over {error.count} measured networks the error is {text.percent(error.median)} "
                f"in the median and {text.percent(error.worst)} at worst; "
                f"the rank correlation is {text.decimal(error.spearman, 3)}."
            )
        )
    if report.finalists:
        rows = tuple(_finalist(f) for f in report.finalists)
        head = ("plan", "predicted", "measured", "error", "score", "repaired", "raced", "")
        parts.append(Table(head, rows, (1, 2, 3, 4, 5, 6)))
    return Section("prediction", heading, tuple(parts))


def _finalist(plan: Finalist) -> tuple[str, ...]:
    return (
        plan.label,
        text.milliseconds(plan.predicted_ms),
        text.milliseconds(plan.measured_ms),
        text.signed_percent(plan.relative_error),
        text.decimal(plan.score, 4),
        text.decimal(plan.joint, 4),
        _race(plan.race),
        "chosen" if plan.chosen else "",
    )


def _race(scores: tuple[float | None, ...]) -> str:
    """Returns the mean over the laps, and how many they were."""
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return "diverged"
    laps = "1 lap" if len(known) == 1 else f"{len(known)} laps"
    return f"{text.decimal(fmean(known), 4)}, {laps}" if known else text.decimal(None, 4)
