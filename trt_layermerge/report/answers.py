"""The first screen: how much faster, at what cost, within the budget, and as predicted?"""

from __future__ import annotations

import math

from trt_layermerge.report import text
from trt_layermerge.report.data import RunReport
from trt_layermerge.report.document import Answer
from trt_layermerge.report.statistics import difference_interval

MEDIAN_GOAL, WORST_GOAL = 0.05, 0.10


def answers(report: RunReport) -> tuple[Answer, ...]:
    """Returns the four answers that a reader looks for first."""
    return speed(report), accuracy(report), budget(report), prediction(report)


def gaps(report: RunReport) -> tuple[str, ...]:
    """Returns what was not verified: what run and verification say, what missing parts imply."""
    implied = (
        (report.bench is None, "The two networks were not benchmarked side by side."),
        (not {"original", "merged"} <= set(report.accuracies), "Accuracy was not compared."),
        (not report.finalists, "No finalist was built whole and measured."),
        (report.certificate is None, "The merge carries no certificate."),
        (report.verify is None, "The exported network was not compared with the trained one."),
        (report.engine is None, "No engine was built, so none was checked."),
    )
    said = (report.verify or {}).get("unverified", ())
    missing = (sentence for absent, sentence in implied if absent)
    return tuple(dict.fromkeys([*report.unverified, *map(str, said), *missing]))


def _usable(*values: float | None) -> bool:
    return all(v is not None and math.isfinite(v) and v > 0 for v in values)


def speed(report: RunReport) -> Answer:
    """Answers how much faster the merged network was measured to be."""
    bench = report.bench
    if bench is not None and _usable(bench.speedup, bench.original.p50_ms, bench.merged.p50_ms):
        detail = (
            f"measured, {text.ratio(bench.low)} to {text.ratio(bench.high)} ({bench.spread}); "
            f"{text.milliseconds(bench.original.p50_ms)} → "
            f"{text.milliseconds(bench.merged.p50_ms)}, median"
        )
        verdict = "good" if bench.low > 1 else "bad" if bench.high < 1 else "open"
        return Answer("How much faster?", text.ratio(bench.speedup), detail, verdict)
    value = report.summary.get("speedup")
    if value is not None and _usable(value):
        detail = "measured, without a spread: the networks were not benchmarked side by side"
        return Answer("How much faster?", text.ratio(value), detail)
    return Answer("How much faster?", text.MISSING, "no benchmark of this run was recorded")


def accuracy(report: RunReport) -> Answer:
    """Answers how much accuracy was lost, with the interval of the difference."""
    question = "What did it cost?"
    before, after = report.accuracies.get("original"), report.accuracies.get("merged")
    if before is None or after is None or not math.isfinite(before.value + after.value):
        return Answer(question, text.MISSING, "no accuracy of both networks was recorded")
    low, high = difference_interval(after.value, after.images, before.value, before.images)
    images = (
        text.count(after.images)
        if after.images == before.images
        else f"{text.count(before.images)} and {text.count(after.images)}"
    )
    detail = (
        f"{text.percent(before.value)} → {text.percent(after.value)} on {images} "
        f"{report.accuracy_data}; 95 % interval {text.points_interval((low, high))} points"
    )
    verdict = "bad" if high < 0 else "good" if low > 0 else "open"
    return Answer(question, text.points(after.value - before.value), detail, verdict)


def budget(report: RunReport) -> Answer:
    """Answers whether the measured network meets the budget, and by how much."""
    question = "Within the budget?"
    limit, measured = report.budget_ms, report.measured_ms
    if limit is None or not _usable(limit):
        return Answer(question, "no budget", "the run was not given a latency budget")
    if measured is None or not _usable(measured):
        detail = f"the merged network was not measured against {text.milliseconds(limit)}"
        return Answer(question, "unknown", detail)
    share = measured / limit - 1
    side = "under" if share <= 0 else "over"
    detail = (
        f"measured {text.milliseconds(measured)}, {text.percent(abs(share))} {side} the budget "
        f"of {text.milliseconds(limit)}"
    )
    return Answer(
        question, "met" if share <= 0 else "missed", detail, "good" if share <= 0 else "bad"
    )


def prediction(report: RunReport) -> Answer:
    """Answers how far the measured network is from the predicted one, and others of the run."""
    question = "As predicted?"
    predicted, measured = report.predicted_ms, report.measured_ms
    error = report.prediction
    others = (
        f"{error.count} networks: median error {text.percent(error.median)}, "
        f"worst {text.percent(error.worst)}"
        if error is not None
        else "no other network was measured"
    )
    verdict = "open"
    if error is not None:
        met = error.median <= MEDIAN_GOAL and error.worst <= WORST_GOAL
        verdict = "good" if met else "bad"
    if predicted is None or measured is None or not _usable(predicted, measured):
        return Answer(question, "unknown", f"no pair of latencies for the chosen plan; {others}")
    pair = f"predicted {text.milliseconds(predicted)}, measured {text.milliseconds(measured)}"
    return Answer(
        question, text.signed_percent(predicted / measured - 1), f"{pair}; {others}", verdict
    )
