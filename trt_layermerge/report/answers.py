"""The first screen: can it be shipped; how much faster, at what cost, within budget, verified?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from trt_layermerge.errors import command
from trt_layermerge.report import text
from trt_layermerge.report.data import Accuracy, RunReport

MEDIAN_GOAL, WORST_GOAL = 0.05, 0.10
KEPT = "What did it keep?"
BUDGET = {
    "met": "within the budget",
    "missed": "over the budget",
    "no budget": "without a budget",
    "unknown": "budget not checked",
}
"""What the answers about the budget are in a sentence."""

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


class Step(NamedTuple):
    """Something to do next, and what to type for it."""

    words: str
    command: str


def answers(report: RunReport) -> tuple[Answer, ...]:
    """Returns the four answers that a reader looks for first; what was made up is never good."""
    found = speed(report), accuracy(report), budget(report), verified(report)
    made_up = report.device.backend == "fake"
    return tuple(
        replace(a, verdict="open") if made_up and a.verdict == "good" else a for a in found
    )


def shipping(report: RunReport) -> Answer:
    """Returns whether the network can be shipped: what failed first, then what nobody knows."""
    question, found = "Can I ship it?", answers(report)
    faster, cost, met, _ = found
    if failed := _failures(report):
        return Answer(question, "No", "; ".join(failed), "bad")
    if faster.verdict == "bad":
        return Answer(question, "No", f"it is not faster: {faster.detail}", "bad")
    if met.verdict == "bad":
        return Answer(question, "Not yet", f"the budget was missed: {met.detail}", "bad")
    told = f"{_gain(faster)}, {_price(cost)}, {BUDGET[met.figure]}"
    unknown = [a.detail for a in (cost, met) if a.figure in (text.MISSING, "unknown")]
    unknown += [faster.detail] if faster.verdict == "open" else []
    if left := gaps(report) or unknown:
        things = f"{len(left)} {'things were' if left[1:] else 'thing was'}"
        return Answer(question, "Not proven", f"{told}; but {things} not checked, see below")
    if any(answer.verdict == "bad" for answer in found):
        return Answer(question, "Your decision", f"everything was checked; is it worth it? {told}")
    return Answer(question, "Yes", f"everything was measured and checked: {told}", "good")


def _gain(faster: Answer) -> str:
    return "speed not measured" if faster.figure == text.MISSING else f"{faster.figure} faster"


def _price(cost: Answer) -> str:
    if cost.figure == text.MISSING:
        return "cost not measured"
    return f"{cost.figure} of {'the answers kept' if cost.question == KEPT else 'quality'}"


def _failures(report: RunReport) -> tuple[str, ...]:
    """Returns what was checked and failed."""
    merge = "the merged network differs from the trained one by more than rounding (certificate)"
    rejected = (report.certificate or {}).get("ok") is False
    return *report.failed_gates, *([merge] if rejected else [])


def verified(report: RunReport) -> Answer:
    """Returns whether everything that can be checked was, and held."""
    question, open_ends = "Was everything verified?", gaps(report)
    if failed := _failures(report):
        return Answer(question, "failed", "; ".join(failed), "bad")
    if open_ends:
        left = f"{len(open_ends)} {'things' if open_ends[1:] else 'thing'} left open, listed below"
        return Answer(question, "not all", left)
    compared = len((report.verify or {}).get("comparisons", ()))
    detail = f"certificate of the merge; {compared} exported networks against the trained ones"
    return Answer(question, "yes", detail, "good")


def next_steps(report: RunReport) -> tuple[Step, ...]:
    """Returns what to do next and what to type for it, the most useful first."""

    def step(words: str, verb: str, *more: str) -> Step:
        return Step(words, command(verb, report.folder, *more))

    speedup = report.summary.get("speedup")
    speedup = speedup if text.is_positive(speedup) and speedup > 1 else 2.0
    less, more = f"{1 + (speedup - 1) / 2:.2f}", f"{1 + (speedup - 1) * 1.5:.2f}"
    epochs = f"finetune.options.epochs={2 * len(report.history) or 20}"
    train = step("Train longer", "run", "--set", epochs)
    gentler = step("Merge less", "run", "--speedup", less)
    bolder = step("Merge more", "run", "--speedup", more)
    ship = step("Pack it for deployment", "package", "--for", "plain")
    judge = step("Judge it on labelled images", "run", "--set", "data.test=imagefolder:DIR")
    if budget(report).verdict == "bad":
        return bolder, train
    if report.failed_gates:
        return gentler, train
    undone = (
        (report.certificate is None, step("Merge and certify it", "merge")),
        (report.bench is None, step("Time both networks side by side", "bench")),
        (report.verify is None, step("Compare what was exported with what was trained", "verify")),
    )
    if missing := tuple(todo for absent, todo in undone if absent):
        return missing
    if not report.accuracies and not report.summary.get("metric"):
        return judge, ship, gentler
    return (gentler, train, ship) if accuracy(report).verdict == "bad" else (ship, bolder, train)


def gaps(report: RunReport) -> tuple[str, ...]:
    """Returns what was not verified: what run and verification say, what missing parts imply."""
    known = {"original", "merged"} <= set(report.accuracies) or report.summary.get("metric")
    engines, backend = report.device.backend.startswith("tensorrt"), report.device.backend
    implied = (
        (backend == "fake", "Nothing was timed: the backend fake makes its latencies up."),
        (report.bench is None, "The two networks were not benchmarked side by side."),
        (not known, "Accuracy was not compared."),
        (not report.finalists, "No finalist was built whole and measured."),
        (report.certificate is None, "The merge carries no certificate."),
        (report.verify is None, "The exported network was not compared with the trained one."),
        (engines and report.engine is None, "No engine was built, so none was checked."),
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
        nothing = Answer(question, text.MISSING, "no accuracy of both networks was recorded")
        return _metric(report) or agreement(report) or nothing
    low, high = after.minus(before)
    images = " and ".join(map(text.count, dict.fromkeys([before.images, after.images])))
    detail = (
        f"{text.percent(before.value)} → {text.percent(after.value)} on {images} "
        f"{report.accuracy_data}; 95 % interval {text.points_interval((low, high))}"
    )
    verdict = "bad" if high < 0 else "good" if low > 0 else "open"
    return Answer(question, text.points(after.value - before.value), detail, verdict)


def _metric(report: RunReport) -> Answer | None:
    """Returns what the task's own figure lost; None where there is none."""
    if not (found := report.summary.get("metric")):
        return None
    before, after = found["original"], found["merged"]
    detail = f"{found['name']}: {before:.4g} → {after:.4g}"
    return Answer("What did it cost?", f"{after - before:+.3g}".replace("-", "−"), detail)


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
    return Answer(KEPT, text.percent(same), detail, verdict)


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
