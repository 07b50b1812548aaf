"""``docs/results/latency-prediction.md``: how far predictions were off, in tables and words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from math import inf, nan

import numpy as np

from benchmarks.studies.glyphs_page import made_by
from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.unit import Rules
from trt_layermerge.kinds.registry import kinds_of, usual_kinds
from trt_layermerge.measure.fit import rank_correlation
from trt_layermerge.measure.timing import VARIATION_LIMIT
from trt_layermerge.session.settings import MeasureSection

NETWORKS = ("resnet18", "resnet34", "mobilenet_v2", "efficientnet_lite0")
OFFERS: dict[str, tuple[Rules, tuple[str, ...]]] = {
    "paper": ("paper", tuple(kind.name for kind in kinds_of("paper"))),
    "full": ("full", usual_kinds()),
    "all": ("full", tuple(kind.name for kind in kinds_of())),
}
"""Rules and kinds of candidates that random plans are drawn from."""

CASES = {f"{network}-{offer}": (network, offer) for network, offer in product(NETWORKS, OFFERS)}
TITLES = {"paper": "paper rules", "full": "full rules", "all": "all kinds"}

FAR = 5.0
"""Plans that are predicted to be faster by more than this are judged apart."""


@dataclass(frozen=True)
class Case:
    """What one network showed under one set of rules.

    Attributes:
        name: Network and what is offered, such as ``resnet18-full``.
        specs: How many specs the table has.
        table_s: Seconds that measuring them took.
        fitted: Networks that the table was fitted to, the original among them.
        promised: Errors of networks that the fit itself left out, one at a time.
        original_ms: Latency of the original.
        measured: Latency of every test plan, in ms.
        predicted: The same, predicted by the fitted table.
        alone: The same, predicted by the sum of blocks alone.
        noisy: Networks, of test and fit, whose rounds vary by more than ``VARIATION_LIMIT``.
        seconds: What all of it took.
        load: Load average at the end.
        usual: Networks that a run measures by itself: as many as its default, or fewer where each
            is predicted by the others; None where that was not looked at.
        usual_s: Seconds that table and these networks took, about.
        usually: Latency of every test plan, predicted by the table fitted to them.
    """

    name: str
    specs: int
    table_s: float
    fitted: int
    promised: dict[str, float]
    original_ms: float
    measured: list[float]
    predicted: list[float]
    alone: list[float]
    noisy: int
    seconds: float
    load: float
    usual: int | None = None
    usual_s: float | None = None
    usually: list[float] = field(default_factory=list)

    @staticmethod
    def of(row: Json) -> Case:
        """Returns the case of a recorded row."""
        return Case(**{name: value for name, value in row.items() if name != "kind"})

    def row(self) -> Json:
        """Returns what is recorded."""
        return asdict(self)

    @property
    def title(self) -> str:
        """Network and rules in words."""
        network, offer = CASES[self.name]
        return f"{network}, {TITLES[offer]}"

    @property
    def far(self) -> list[bool]:
        """Which test plans are predicted to be more than ``FAR`` times as fast."""
        return [self.original_ms > FAR * ms for ms in self.predicted]

    def figures(self, predicted: Sequence[float], far: bool | None) -> Figures:
        """Returns the figures of a prediction for the plans beyond ``FAR``, up to it, or all."""
        kept = [i for i, beyond in enumerate(self.far) if far in (None, beyond)]
        return Figures.of([predicted[i] for i in kept], [self.measured[i] for i in kept])


@dataclass(frozen=True)
class Figures:
    """How far some predictions were off; of no plans, infinitely far.

    Attributes:
        plans: How many.
        median: Median of the relative errors.
        worst: The largest of them.
        spearman: Rank correlation of predicted and measured; ``nan`` of fewer than two.
    """

    plans: int
    median: float
    worst: float
    spearman: float

    @staticmethod
    def of(predicted: Sequence[float], measured: Sequence[float]) -> Figures:
        """Returns the figures of predicted and measured latencies."""
        if not measured:
            return Figures(0, inf, inf, nan)
        errors = np.abs(np.array(predicted) / np.array(measured) - 1)
        spearman = rank_correlation(predicted, measured) if len(measured) > 1 else nan
        return Figures(len(measured), float(np.median(errors)), float(errors.max()), spearman)

    def cells(self) -> str:
        """Returns the cells of a table row."""
        if not self.plans:
            return "0 | - | - | -"
        spearman = "-" if np.isnan(self.spearman) else f"{self.spearman:.3f}"
        return f"{self.plans} | {self.median:.1%} | {self.worst:.1%} | {spearman}"


@dataclass(frozen=True)
class Goal:
    """What predictions were meant to reach.

    Attributes:
        words: It, in words.
        reached: Whether it is reached.
        value: What came of it, in words.
    """

    words: str
    reached: Callable[[Figures], bool]
    value: Callable[[Figures], str]


GOALS = (
    Goal("10 test plans or more", lambda f: f.plans >= 10, lambda f: f"{f.plans}"),
    Goal("median error of 5 % or less", lambda f: f.median <= 0.05, lambda f: f"{f.median:.2%}"),
    Goal("worst error of 10 % or less", lambda f: f.worst <= 0.1, lambda f: f"{f.worst:.2%}"),
    Goal("Spearman of 0.95 or more", lambda f: f.spearman >= 0.95, lambda f: f"{f.spearman:.4f}"),
)
TABLE_GOAL_S = 180.0


def page(header: Json, rows: list[Json]) -> str:
    """Returns the page of the recorded cases, as Markdown."""
    cases = [Case.of(row) for row in rows if row["kind"] == "case"]
    lines = [
        "# Predicted against measured latency",
        "",
        *summary(cases),
        "",
        *_how(header, rows),
    ]
    for case in cases:
        lines += ["", *case_lines(case)]
    return "\n".join(lines) + "\n"


def summary(cases: Sequence[Case]) -> list[str]:
    """Returns a row for every case, and which goals are reached and which are not."""
    missing = [name for name in CASES if name not in {case.name for case in cases}]
    near = {case.name: case.figures(case.predicted, far=False) for case in cases}
    slow = [f"{c.name} ({c.table_s:.1f} s)" for c in cases if c.table_s > TABLE_GOAL_S]
    return [
        f"Whole merged networks, those predicted to be up to {FAR:g}x as fast as the original, and "
        "those beyond:",
        "",
        "| network | plans | median error | worst error | Spearman | beyond | worst error there |",
        "|---|---|---|---|---|---|---|",
        *(f"| {case.title} | {near[case.name].cells()} | {_beyond(case)} |" for case in cases),
        "",
        f"Goals, for plans up to {FAR:g}x:",
        "",
        *(f"- {goal.words}: {_verdict(goal, near)}" for goal in GOALS),
        f"- table measured within {TABLE_GOAL_S:.0f} s: {_misses(slow, len(cases))}",
        *([f"- **not measured: {', '.join(missing)}**"] if missing else []),
        "",
        *_counted(cases),
        *_usual(cases),
    ]


def _usual(cases: Sequence[Case]) -> Iterable[str]:
    """Yields what comes of as many networks as a run measures by itself."""
    known = [case for case in cases if case.usual is not None]
    if not known:
        return
    yield ""
    yield (
        f"A run measures {MeasureSection().networks} networks beside the original, or half of them "
        "where each is predicted by the others. Then the errors on the same test plans are:"
    )
    yield ""
    yield "| network | networks | seconds, table and networks | plans | median | worst | Spearman |"
    yield "|---|---|---|---|---|---|---|"
    for case in known:
        cells = case.figures(case.usually, far=False).cells()
        yield f"| {case.title} | {case.usual} | {case.usual_s:.0f} | {cells} |"


def _beyond(case: Case) -> str:
    found = case.figures(case.predicted, far=True)
    return f"{found.plans} | {found.worst:.1%}" if found.plans else "0 | -"


def _verdict(goal: Goal, figures: dict[str, Figures]) -> str:
    """Returns by which cases a goal is reached, and what came of it elsewhere."""
    missed = [
        f"{name} ({goal.value(found) if found.plans else 'no plans'})"
        for name, found in figures.items()
        if not goal.reached(found)
    ]
    return _misses(missed, len(figures))


def _misses(missed: Sequence[str], count: int) -> str:
    if not missed:
        return f"reached in all {count} cases."
    return f"**missed** in {len(missed)} of {count} cases: {', '.join(missed)}."


def _counted(cases: Sequence[Case]) -> Iterable[str]:
    """Yields what the plans beyond are, and what would become of the goals with them."""
    number = sum(sum(case.far) for case in cases)
    total = sum(len(case.far) for case in cases)
    if not number:
        yield f"No test plan is predicted to be more than {FAR:g}x as fast."
        return
    yield (
        f"{number} of {total} test plans are predicted to be more than {FAR:g}x as fast. Random "
        "plans go that far, a search for an accurate network does not. With them counted:"
    )
    yield ""
    both = {case.name: case.figures(case.predicted, far=None) for case in cases}
    for goal in GOALS[1:]:
        yield f"- {goal.words}: {_verdict(goal, both)}"


def _how(header: Json, rows: list[Json]) -> list[str]:
    used = header["settings"]
    size = used["size"]
    return [
        made_by("benchmarks.bm_predict", header, rows)
        + " Figures: `data/latency-prediction.jsonl`; this page is made of them alone.",
        "",
        f"For each network, with random weights, at 1x3x{size}x{size} in {used['precision']} on "
        f"{used['device']}: every spec is measured alone; {used['plans']} random plans, from "
        "hardly changed to as changed as can be, are merged whole and timed in turns with the "
        f"original, {used['rounds']} rounds each; the table is fitted to the original and two "
        f"thirds of them and predicts every third, which it has not seen. Seed {used['seed']}.",
    ]


def case_lines(case: Case) -> list[str]:
    """Returns the Markdown lines of one case."""
    predictions = {"fitted": case.predicted, "sum of blocks alone": case.alone}
    lines = [
        f"## {case.title}",
        "",
        f"{case.specs} specs measured in {case.table_s:.1f} s; original {case.original_ms:.2f} ms; "
        f"fitted to {case.fitted} networks, tested on {len(case.measured)} others, in "
        f"{case.seconds:.0f} s, load average at the end {case.load:.2f}. Rounds of {case.noisy} "
        f"networks vary by more than {VARIATION_LIMIT:.1%}.",
        "",
        f"| up to {FAR:g}x | plans | median error | worst error | Spearman |",
        "|---|---|---|---|---|",
        *(f"| {n} | {case.figures(p, far=False).cells()} |" for n, p in predictions.items()),
        "",
        "Errors that the fit itself promised by leaving one network out: median "
        f"{case.promised['median_error']:.1%}, worst {case.promised['worst_error']:.1%}.",
        "",
        "| measured ms | faster | predicted ms | error | |",
        "|---|---|---|---|---|",
    ]
    found = sorted(zip(case.measured, case.predicted, case.far, strict=True))
    lines += [
        f"| {ms:.3f} | {case.original_ms / ms:.2f}x | {guess:.3f} | {guess / ms - 1:+.1%} "
        f"| {f'beyond {FAR:g}x' if far else ''} |"
        for ms, guess, far in found
    ]
    return lines
