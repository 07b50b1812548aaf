"""One page that compares the runs of several speed-ups, with a link to the report of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from trt_layermerge.errors import command
from trt_layermerge.report import text
from trt_layermerge.report.answers import Answer, Step, accuracy, gaps, next_steps, shipping, speed
from trt_layermerge.report.data import Accuracy, RunReport
from trt_layermerge.report.page import document, joined, write_pages
from trt_layermerge.report.plots import Quality, plans_plot
from trt_layermerge.report.templates import render

HEAD = ("asked", "measured", "latency", "quality", "layers", "budget", "can I ship it?")


@dataclass(frozen=True, slots=True)
class Planned:
    """What came of one speed-up: the report of its run, or why it has none.

    ``folder`` is that of its run, beside that of the tables.
    """

    speedup: float
    folder: str
    report: RunReport | None = None
    error: str = ""

    @property
    def asked(self) -> str:
        """The speed-up as it was typed."""
        return f"{self.speedup:g}x"


class _Row(NamedTuple):
    """One plan as the page shows it; ``cells`` stand below ``HEAD``, without its first."""

    asked: str
    folder: str
    cells: tuple[str, ...]
    answer: Answer | None
    gaps: tuple[str, ...]
    steps: tuple[Step, ...]
    error: str


def _row(plan: Planned) -> _Row:
    folder, report = f"../{quote(plan.folder)}", plan.report
    if report is None:
        return _Row(plan.asked, folder, ("–",) * 5 + ("not reached",), None, (), (), plan.error)
    answer, bench = shipping(report), report.bench
    merged = report.summary.get("merged", {})
    cells = (
        f"{speed(report).figure}{f' ({bench.low:.2f} to {bench.high:.2f})' if bench else ''}",
        text.milliseconds(merged.get("latency_ms")),
        _kept(report),
        f"{len(report.graph.convs)} → {len(report.plan.convs)}",
        text.milliseconds(report.summary.get("budget_ms")),
        answer.figure,
    )
    return _Row(plan.asked, folder, cells, answer, gaps(report), next_steps(report)[:1], "")


def _kept(report: RunReport) -> str:
    """Returns what the network was worth and is worth, in one measure."""
    for quality in QUALITIES.values():
        if (found := quality(report)) is not None:
            before = "" if found.original is None else f"{found.original:.4g} → "
            return f"{before}{found.merged:.4g} {found.unit}".rstrip()
    return accuracy(report).figure


def _accuracy(report: RunReport) -> Quality | None:
    before, after = (report.accuracies.get(name) for name in ("original", "merged"))
    if before is None or after is None:
        return None
    low, high = after.interval
    return Quality(100 * after.value, 100 * low, 100 * high, 100 * before.value, "%")


def _metric(report: RunReport) -> Quality | None:
    if not (found := report.summary.get("metric")):
        return None
    after = found["merged"]
    return Quality(after, after, after, found["original"], "")


def _agreement(report: RunReport) -> Quality | None:
    verify = report.verify or {}
    same, images = verify.get("least_agreement"), verify.get("images")
    if same is None or not images:
        return None
    low, high = Accuracy(same, images).interval
    return Quality(100 * same, 100 * low, 100 * high, None, "% of the answers")


QUALITIES: Mapping[str, Callable[[RunReport], Quality | None]] = {
    "accuracy, %": _accuracy,
    "figure of the task": _metric,
    "answers kept, %": _agreement,
}
"""What may be drawn, the best first: the first that is known of every plan is."""


def _picture(plans: Sequence[Planned]) -> tuple[str, str | None]:
    """Returns which quality is drawn, and the picture; None for fewer than two plans."""
    reports = {p.asked: p.report for p in plans if p.report is not None}
    for name, quality in QUALITIES.items():
        found = {asked: quality(report) for asked, report in reports.items()}
        spots = [
            (f"{asked}: {shipping(report).figure}", report.bench, kept)
            for asked, report in reports.items()
            if report.bench is not None and (kept := found[asked]) is not None
        ]
        if len(spots) == len(reports) > 1:
            return name, plans_plot(name, spots)
    return "", None


def _best(plans: Sequence[Planned]) -> Answer:
    """Returns which of the plans can be shipped: the fastest of those that can."""
    question = "Which one can I ship?"
    told = [(p, shipping(p.report)) for p in plans if p.report is not None]
    can = [(p, answer) for p, answer in told if answer.verdict == "good"]
    if can:
        plan, answer = max(can, key=lambda pair: pair[0].speedup)
        which = f"the fastest of {len(can)} that can be: {answer.detail}"
        return Answer(question, plan.asked, which, "good")
    left = [f"{p.asked}: {answer.figure.lower()}" for p, answer in told]
    left += [f"{p.asked}: not reached" for p in plans if p.report is None]
    open_ends = any(answer.verdict == "open" for _, answer in told)
    words = f"none is proven ({'; '.join(left)}); below it is told of each why"
    return Answer(question, "None as it is", words, "open" if open_ends else "bad")


def write_plans(plans: Sequence[Planned], folder: Path) -> Path:
    """Writes ``plans.html`` and ``plans.md`` with their picture; returns the path of the first.

    Args:
        plans: What came of every speed-up, in the order in which they were asked.
        folder: The run that has the tables: the others are its neighbours.
    """
    reports = [plan.report for plan in plans if plan.report is not None]
    where = f"{reports[0].model} on {reports[0].device}. " if reports else ""
    quality, picture = _picture(plans)
    speedups = [plan.speedup for plan in plans]

    def again(words: str, *more: float) -> Step:
        asked = ",".join(f"{speedup:.3g}" for speedup in (*speedups, *more))
        return Step(words, command("run", folder, "--speedup", asked))

    values: dict[str, Any] = {
        "title": f"{folder.name}: {len(plans)} speed-ups beside each other",
        "lead": f"{where}Each has a run of its own, from the same tables.",
        "best": _best(plans),
        "head": HEAD,
        "quality": quality.capitalize(),
        "rows": tuple(map(_row, plans)),
        "steps": (
            again("Do again what has changed, and write this page anew"),
            again("Put a faster one beside them", 1.25 * max(speedups)),
        ),
        "contents": [],
        "view": {"pictures": {"plans": Markup(picture) if picture else None}},
    }
    pages = {
        "plans.html": document(values["title"], render("plans.html", **values)),
        "plans.md": joined(render("plans.md", **values)),
    }
    return write_pages(folder, pages, {"plans": picture})[0]
