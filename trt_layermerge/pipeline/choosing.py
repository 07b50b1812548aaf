"""Which plan a search comes to: by building and measuring finalists, or by imported figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.measure.fit import Observation, fit_latency
from trt_layermerge.pipeline import race
from trt_layermerge.pipeline.closing import (
    BudgetMissedError,
    Closed,
    Finalist,
    Key,
    Tools,
    close_loop,
    missed,
    predict,
)
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.joint import JointScores, contenders, widen
from trt_layermerge.pipeline.networks import Measured, measure_plans, specs_of
from trt_layermerge.pipeline.objective import frontier_of, priced, published
from trt_layermerge.pipeline.recorded import Recorded
from trt_layermerge.search import Frontier

BUILDS = 3
"""How often the engine of the chosen network is built: builders choose kernels by chance too."""


UNKNOWN_ERROR = 0.2
"""Relative error of predictions, where too few networks were measured to tell it."""


@dataclass(frozen=True)
class Ranked:
    """A finalist and what speaks for it.

    Attributes:
        finalist: The plan, measured or predicted.
        joint: Minus the loss of the whole repaired network, if that was worked out.
        raced: How good it was in the first steps of a training, if it raced.
    """

    finalist: Finalist
    joint: float | None = None
    raced: race.Raced | None = None


@dataclass(frozen=True)
class Choice:
    """What a search came to.

    Attributes:
        closed: Everything that was looked at.
        ranked: The finalists that may be chosen, the best first.
        chosen: One of the finalists.
        measured: How it measured in the end; None where it is predicted only.
    """

    closed: Closed
    ranked: list[Ranked]
    chosen: Finalist
    measured: Measured | None


def choose(context: Context, tools: Tools, original_ms: float, budget_ms: float) -> Choice:
    """Returns the best plan that was built, measured, and measured again within the budget."""
    search = context.recipe.search
    limit_ms = budget_ms * (1 - search.headroom)
    closed = close_loop(limit_ms, search.finalists, search.loops, tools, budget_ms)
    if not closed.meeting(limit_ms):
        context.reporter.note("the budget is met only without its headroom")
        limit_ms = budget_ms
    scores = JointScores(context)
    if search.samples and not published(context):
        widen(context, tools, closed, limit_ms, scores)
    meeting = closed.meeting(limit_ms)
    context.reporter.note(
        f"{len(closed.finalists)} networks built and measured, "
        f"{len(meeting)} of them within {limit_ms:.4g} ms"
    )
    wholes = [f for f in meeting[search.finalists :] if f.plan.candidates in scores.known]
    ranked = _rank(context, [*meeting[: search.finalists], *wholes], scores)
    for one in ranked:
        again = _measure_again(context, one.finalist.plan, original_ms)
        took_ms = _took_ms(context, again)
        if took_ms <= budget_ms:
            return Choice(closed, ranked, one.finalist, again)
        context.reporter.note(
            f"a finalist took {took_ms:.4g} ms when measured again, more than {budget_ms:.4g} ms"
        )
    raise BudgetMissedError(
        f"every finalist was slower than {budget_ms:.4g} ms when measured again; the machine is "
        "busy or the budget too close to the limit: try again, raise it, or raise search.headroom",
        closed,
    )


def _measure_again(context: Context, plan: MergePlan, original_ms: float) -> Measured:
    """Returns a second measurement, for the first one flatters what was picked by it.

    Engines are built anew for it, several times.
    """
    rounds, builds = 2 * context.recipe.measure.rounds, BUILDS if context.engines else 1
    _, (again,) = measure_plans(context, [plan], original_ms, rounds, builds)
    _tell_builds(context, again)
    return again


def _took_ms(context: Context, measured: Measured) -> float:
    """Returns the latency that the budget is about: one in ms goes by the clock on the wall."""
    return measured.clock_ms if context.recipe.search.budget_ms else measured.ms


def _tell_builds(context: Context, measured: Measured) -> None:
    """Tells how much building is a matter of luck, where the network was built several times."""
    if len(measured.ratios) > 1:
        context.reporter.note(
            f"{len(measured.ratios)} builds of the network are {min(measured.ratios):.3f} to "
            f"{max(measured.ratios):.3f} times as fast as the original"
        )


def choose_recorded(context: Context, tools: Tools, original_ms: float, budget_ms: float) -> Choice:
    """Returns the best plan that was measured within the budget elsewhere, or else is predicted to.

    What was measured elsewhere cannot be measured again, so it counts as it is.

    Raises:
        BudgetMissedError: If no plan is either.
        DeviceError: If none of the networks that were measured could be built and run.
    """
    search, known = context.recipe.search, _known(context, original_ms)
    limit_ms = budget_ms * (1 - search.headroom)
    closed = predict(_aims_ms(context, limit_ms), search.finalists, tools, known)
    good = [m for m in known if _took_ms(context, m) <= budget_ms]
    if not good:
        return _predicted(context, closed, limit_ms, budget_ms)
    within = {m.plan.candidates for m in good if _took_ms(context, m) <= limit_ms}
    within = within or {m.plan.candidates for m in good}
    context.reporter.note(
        f"{len(known)} networks were measured elsewhere, {len(good)} of them within "
        f"{budget_ms:.4g} ms"
    )
    meeting = [f for f in closed.meeting(math.inf) if f.plan.candidates in within]
    ranked = _rank(context, meeting[: search.finalists], JointScores(context))
    chosen = ranked[0].finalist
    if chosen.measured is not None:
        _tell_builds(context, chosen.measured)
    better = [f for f in _promised(closed, limit_ms) if _score(f) > _score(chosen)]
    if better:
        context.reporter.note(
            f"{len(better)} plans that were not measured are predicted to be better and within "
            f"{limit_ms:.4g} ms; another round trip would tell: {Recorded.of(context).remedy}"
        )
    return Choice(closed, ranked, chosen, chosen.measured)


def _aims_ms(context: Context, limit_ms: float) -> list[float]:
    """Returns the latencies to look for plans around, the limit first, then ever lower ones.

    They stand for the rounds of the loop, all at once, for every round trip costs somebody a walk:
    down to where a plan meets the limit although the table is twice as wrong as it was at worst.
    """
    error = context.latency.notes["fit"]["worst_error"] or UNKNOWN_ERROR
    steps = max(1, context.recipe.search.loops - 1)
    return [limit_ms / (1 + 2 * error * step / steps) for step in range(steps + 1)]


def _known(context: Context, original_ms: float) -> list[Measured]:
    """Returns the imported finalists that are still plans of this run."""
    _, found = Recorded.of(context).measured(context, "finalist", original_ms)
    offered = {c.key for c in context.candidates}
    return [m for m in found if all(c.key in offered for c in m.plan.changed)]


def _predicted(context: Context, closed: Closed, limit_ms: float, budget_ms: float) -> Choice:
    """Returns the plan that is predicted to be best, and tells that it is predicted only.

    Raises:
        BudgetMissedError: If none is predicted to meet the budget.
        DeviceError: If networks were measured, and none could be built and run.
    """
    promised = _promised(closed, budget_ms)
    if not promised:
        raise missed(closed, budget_ms)
    context.reporter.note(
        "the plan is predicted, not measured: to measure it and its neighbours, "
        f"{Recorded.of(context).remedy}, import the answers (--import FILE) and search again"
    )
    chosen = max(_promised(closed, limit_ms) or promised, key=_score)
    return Choice(closed, [Ranked(chosen)], chosen, None)


def _promised(closed: Closed, limit_ms: float) -> list[Finalist]:
    """Returns the finalists that were not measured and are predicted within a limit."""
    return [f for f in closed.finalists if f.measured is None and f.predicted_ms <= limit_ms]


def _score(finalist: Finalist) -> float:
    return finalist.plan.score or 0.0


def tools_of(context: Context, original_ms: float, before: Sequence[Observation]) -> Tools:
    """Returns how to fit, search, measure and price in a run.

    Args:
        context: The run.
        original_ms: The original's latency in the run's first measurement.
        before: The networks that ``latency`` measured.
    """
    measure = context.recipe.measure
    bare = LatencyTable.load(context.folder / "latency_bare.jsonl")

    def fit(measured: Sequence[Measured]) -> LatencyTable:
        seen = [Observation(specs_of(m.plan), m.ms) for m in measured if m.error is None]
        return fit_latency(bare, [*before, *seen], measure.precision, measure.batch)

    def points(table: LatencyTable) -> Frontier:
        return frontier_of(context, table)

    def build(plans: Sequence[MergePlan]) -> Sequence[Measured]:
        return measure_plans(context, plans, original_ms, measure.rounds)[1]

    def price(table: LatencyTable, plan: MergePlan) -> MergePlan:
        return priced(context, table, plan)

    return Tools(fit, points, build, price)


def _rank(context: Context, meeting: list[Finalist], scores: JointScores) -> list[Ranked]:
    """Returns the finalists, the best first: those that raced by what they learnt, then the others.

    The table adds up losses of single replacements; here each network is repaired whole and
    scored on the images that the table was scored on. Under the paper's protocol, and for a single
    finalist, the order of the table stays.
    """
    if published(context) or len(meeting) == 1:
        return [Ranked(finalist) for finalist in meeting]
    plans = [finalist.plan for finalist in meeting]
    joint = dict(
        zip((p.candidates for p in plans), scores.of(plans, "scoring finalists"), strict=True)
    )
    raced: dict[Key, race.Raced] = {}
    if race.wanted(context):
        racers = contenders(context, plans, scores)
        found = race.race(context, racers)
        raced = {p.candidates: one for p, one in zip(racers, found, strict=True)}
    ranked = [Ranked(f, joint[f.plan.candidates], raced.get(f.plan.candidates)) for f in meeting]
    return sorted(ranked, key=_merit, reverse=True)


def _merit(ranked: Ranked) -> tuple[float, ...]:
    """Who ran farther is better, then who did better, then who lost less before; see ``race``."""
    return *(ranked.raced.merit if ranked.raced else (0, 0.0)), ranked.joint or 0.0
