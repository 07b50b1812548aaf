"""The first screen: how much faster, at what cost, within the budget, and as predicted?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trt_layermerge.report import text
from trt_layermerge.report.data import Accuracy, RunReport

MEDIAN_GOAL, WORST_GOAL = 0.05, 0.10

FEW_KEPT = 0.9
"""A network that surely changes more than every tenth answer is marked, whatever is asked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One question of the first screen, with its answer at a glance and in a sentence.

    ``verdict`` is ``good``, ``bad`` or ``open``.
    """

    question: str
    figure: str
    detail: str
    verdict: str = "open"


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


def speed(report: RunReport) -> Answer:
    """Returns how much faster the merged network was measured to be."""
    question, bench = "How much faster?", report.bench
    if bench and text.is_positive(bench.speedup):
        before, after = (text.milliseconds(t.p50_ms) for t in (bench.original, bench.merged))
        detail = (
            f"measured, {text.ratio(bench.low)} to {text.ratio(bench.high)} ({bench.spread}); "
            f"{before} → {after}, median"
        )
        verdict = "good" if bench.low > 1 else "bad" if bench.high < 1 else "open"
        return Answer(question, text.ratio(bench.speedup), detail, verdict)
    value = report.summary.get("speedup")
    if text.is_positive(value):
        detail = "measured, without a spread: the networks were not benchmarked side by side"
        return Answer(question, text.ratio(value), detail)
    return Answer(question, text.MISSING, "no benchmark of this run was recorded")


def accuracy(report: RunReport) -> Answer:
    """Returns how much accuracy was lost, with the interval; without labels, what agrees."""
    question = "What did it cost?"
    before, after = report.accuracies.get("original"), report.accuracies.get("merged")
    if before is None or after is None or not math.isfinite(before.value + after.value):
        return agreement(report) or Answer(
            question, text.MISSING, "no accuracy of both networks was recorded"
        )
    low, high = after.minus(before)
    images = " and ".join(map(text.count, dict.fromkeys([before.images, after.images])))
    detail = (
        f"{text.percent(before.value)} → {text.percent(after.value)} on {images} "
        f"{report.accuracy_data}; 95 % interval {text.points_interval((low, high))}"
    )
    verdict = "bad" if high < 0 else "good" if low > 0 else "open"
    return Answer(question, text.points(after.value - before.value), detail, verdict)


def agreement(report: RunReport) -> Answer | None:
    """Returns how often both networks answer alike, which needs no labels; None if not recorded."""
    verify = report.verify or {}
    same, images = verify.get("least_agreement", verify.get("agreement")), verify.get("images")
    if same is None or not images:
        return None
    asked = verify.get("min_agreement")
    low, high = Accuracy(same, images).interval
    limit = "" if asked is None else f"; {text.percent(asked)} is asked for"
    where = f"{text.count(images)} {verify.get('on', 'images')}"
    detail = (
        f"of {where} get the same answer as before{limit} (95 % interval {text.percent(low)} to "
        f"{text.percent(high)}){_distance(verify)}; accuracy was not measured, for want of labels"
    )
    lost = high < FEW_KEPT if asked is None else same < asked
    verdict = "bad" if lost else "open" if asked is None else "good"
    return Answer("What did it keep?", text.percent(same), detail, verdict)


def _distance(verify: Mapping[str, Any]) -> str:
    """Returns how far the outputs are apart; of several, the farthest by either measure."""
    found: Mapping[str, Any] = verify.get("fidelity", {})
    kls, errors = (
        [v for row in found.values() if (v := row.get(name)) is not None]
        for name in ("kl", "relative_error")
    )
    told = f", KL {max(kls):.3g} nats" if kls else ""
    return told + (f", relative error {max(errors):.3g}" if errors else "")


def budget(report: RunReport) -> Answer:
    """Returns whether the measured network meets the budget, and by how much."""
    question = "Within the budget?"
    measured: float | None = report.summary.get("merged", {}).get("latency_ms")
    limit: float | None = report.summary.get("budget_ms", report.plan.budget_ms)
    if not text.is_positive(limit):
        return Answer(question, "no budget", "the run was not given a latency budget")
    if not text.is_positive(measured):
        detail = f"the merged network was not measured against {text.milliseconds(limit)}"
        return Answer(question, "unknown", detail)
    share = text.percent(abs(measured / limit - 1))
    met = measured <= limit
    detail = (
        f"measured {text.milliseconds(measured)}, {share} {'under' if met else 'over'} the budget "
        f"of {text.milliseconds(limit)}"
    )
    return Answer(question, "met" if met else "missed", detail, "good" if met else "bad")


def prediction(report: RunReport) -> Answer:
    """Returns how far the measured network is from the predicted one, and others of the run."""
    question, error = "As predicted?", report.prediction
    others, verdict = "no other network was measured", "open"
    if error is not None:
        others = (
            f"{error.count} networks: median error {text.percent(error.median)}, "
            f"worst {text.percent(error.worst)}"
        )
        met = error.median <= MEDIAN_GOAL and error.worst <= WORST_GOAL
        verdict = "good" if met else "bad"
    predicted: float | None = report.summary.get("predicted_ms", report.plan.latency_ms)
    measured: float | None = report.summary.get("merged", {}).get("latency_ms")
    if not (text.is_positive(predicted) and text.is_positive(measured)):
        return Answer(question, "unknown", f"no pair of latencies for the chosen plan; {others}")
    pair = f"predicted {text.milliseconds(predicted)}, measured {text.milliseconds(measured)}"
    figure = text.signed_percent(predicted / measured - 1)
    return Answer(question, figure, f"{pair}; {others}", verdict)
