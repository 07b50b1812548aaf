"""Which plan a search comes to: by building and measuring finalists, or by imported figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.search.closing import (
    BudgetMissedError,
    Closed,
    Finalist,
    Key,
    Tools,
    close_loop,
    missed,
    predict,
)
from trt_layermerge.search.evaluator import Evaluator, Measured
from trt_layermerge.search.joint import JointScores, Neighbours, contenders, widen
from trt_layermerge.search.problem import Problem, decides_alone
from trt_layermerge.search.race import Raced, race

UNKNOWN_ERROR = 0.2
"""Relative error of predictions, where too few networks were measured to tell it."""

MUCH_FASTER = 0.9
"""Share of its budget below which it is told why a plan was taken that nobody asked for."""


@dataclass(frozen=True)
class Goal:
    """What is looked for, and how hard.

    Attributes:
        original_ms: Latency of the original in the first measurement.
        budget_ms: Latency that the measured network must meet.
        by_clock: Whether the budget is one in ms, held to the clock of the measurement itself, and
            not a speed-up over the original.
        headroom: Share of the budget that the network must stay below it at first.
        finalists: Plans measured in each round of the loop.
        loops: Rounds of the loop at most.
        samples: Plans drawn around the best ones, and scored whole.
        seed: Of everything drawn.
    """

    original_ms: float
    budget_ms: float
    by_clock: bool
    headroom: float
    finalists: int
    loops: int
    samples: int
    seed: int

    @property
    def limit_ms(self) -> float:
        """The latency to aim for."""
        return self.budget_ms * (1 - self.headroom)

    def took_ms(self, measured: Measured) -> float:
        """Returns the latency that the budget is about."""
        return measured.clock_ms if self.by_clock else measured.ms


@dataclass(frozen=True)
class Imported:
    """Measurements from a device out of reach.

    Attributes:
        known: Finalists that were measured there.
        worst_error: Relative error of the predictions at worst, or None if nobody knows.
        remedy: What to type for more measurements.
    """

    known: Sequence[Measured]
    worst_error: float | None
    remedy: str


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
    raced: Raced | None = None

    @property
    def score(self) -> float | None:
        """How it did in the race, if it raced."""
        return self.raced.score if self.raced else None


@dataclass(frozen=True)
class Choice:
    """What a search came to.

    Attributes:
        closed: Everything that was looked at.
        ranked: The finalists that may be chosen, the best first.
        chosen: One of the finalists.
        measured: How it measured in the end; None where it is predicted only.
        why: What speaks for it, in words.
    """

    closed: Closed
    ranked: list[Ranked]
    chosen: Finalist
    measured: Measured | None
    why: str


def choose(
    problem: Problem, tools: Tools, evaluator: Evaluator, goal: Goal, tell: Callbacks
) -> Choice:
    """Returns the best plan that was built, measured, and measured again within the budget.

    Args:
        problem: What is searched.
        tools: How to fit, search, measure and price.
        evaluator: Builds, scores and trains whole networks.
        goal: What is looked for.
        tell: What is called meanwhile.

    Raises:
        BudgetMissedError: If no plan measures within the budget.
        DeviceError: If no plan could be built and run.
    """
    limit_ms, budget_ms = goal.limit_ms, goal.budget_ms
    closed = close_loop(limit_ms, goal.finalists, goal.loops, tools, budget_ms)
    if not closed.meeting(limit_ms):
        tell.note("the budget is met only without its headroom")
        limit_ms = budget_ms
    scores = JointScores(problem, evaluator, tell)
    if goal.samples and not decides_alone(problem.importance):
        near = Neighbours(goal.finalists, goal.samples, goal.seed)
        widen(tools, closed, limit_ms, scores, near)
    meeting = closed.meeting(limit_ms)
    tell.note(
        f"{len(closed.finalists)} networks built and measured, "
        f"{len(meeting)} of them within {limit_ms:.4g} ms"
    )
    wholes = [f for f in meeting[goal.finalists :] if f.plan.candidates in scores.known]
    ranked = _rank([*meeting[: goal.finalists], *wholes], scores, goal.finalists)
    for one in ranked:
        again = evaluator.measure_again(one.finalist.plan)
        _tell_builds(again, tell)
        took_ms = goal.took_ms(again)
        if took_ms <= budget_ms:
            why = _why(one, ranked)
            if took_ms < MUCH_FASTER * budget_ms:
                asked = goal.original_ms / budget_ms
                tell.note(f"{again.ratio:.2f}x is taken where {asked:.2f}x was asked for: {why}")
            return Choice(closed, ranked, one.finalist, again, why)
        tell.note(
            f"a finalist took {took_ms:.4g} ms when measured again, more than {budget_ms:.4g} ms"
        )
    raise BudgetMissedError(
        f"every finalist was slower than {budget_ms:.4g} ms when measured again; the machine is "
        "busy or the budget too close to the limit: try again, raise it, or raise search.headroom",
        closed,
    )


def choose_imported(
    problem: Problem,
    tools: Tools,
    evaluator: Evaluator,
    goal: Goal,
    imported: Imported,
    tell: Callbacks,
) -> Choice:
    """Returns the best plan that was measured within the budget elsewhere, or else is predicted to.

    What was measured elsewhere cannot be measured again, so it counts as it is.

    Args:
        problem: What is searched.
        tools: How to fit, search and price.
        evaluator: Scores and trains whole networks; measures none.
        goal: What is looked for.
        imported: What was measured.
        tell: What is called meanwhile.

    Raises:
        BudgetMissedError: If no plan is either.
        DeviceError: If none of the networks that were measured could be built and run.
    """
    known, limit_ms, budget_ms = imported.known, goal.limit_ms, goal.budget_ms
    closed = predict(_aims_ms(goal, imported.worst_error), goal.finalists, tools, known)
    good = [m for m in known if goal.took_ms(m) <= budget_ms]
    if not good:
        return _predicted(closed, goal, imported.remedy, tools.wider, tell)
    within = {m.plan.candidates for m in good if goal.took_ms(m) <= limit_ms}
    within = within or {m.plan.candidates for m in good}
    tell.note(
        f"{len(known)} networks were measured elsewhere, {len(good)} of them within "
        f"{budget_ms:.4g} ms"
    )
    meeting = [f for f in closed.meeting(math.inf) if f.plan.candidates in within]
    scores = JointScores(problem, evaluator, tell)
    ranked = _rank(meeting[: goal.finalists], scores, goal.finalists)
    chosen = ranked[0].finalist
    if chosen.measured is not None:
        _tell_builds(chosen.measured, tell)
    better = [f for f in _promised(closed, limit_ms) if _score(f) > _score(chosen)]
    if better:
        tell.note(
            f"{len(better)} plans that were not measured are predicted to be better and within "
            f"{limit_ms:.4g} ms; another round trip would tell: {imported.remedy}"
        )
    return Choice(closed, ranked, chosen, chosen.measured, _why(ranked[0], ranked))


def _aims_ms(goal: Goal, worst_error: float | None) -> list[float]:
    """Returns the latencies to look for plans around, the limit first, then ever lower ones.

    They stand for the rounds of the loop, all at once, for every round trip costs somebody a walk:
    down to where a plan meets the limit although the table is twice as wrong as it was at worst.
    """
    error, steps = worst_error or UNKNOWN_ERROR, max(1, goal.loops - 1)
    return [goal.limit_ms / (1 + 2 * error * step / steps) for step in range(steps + 1)]


def _predicted(closed: Closed, goal: Goal, remedy: str, wider: str, tell: Callbacks) -> Choice:
    """Returns the plan that is predicted to be best, and tells that it is predicted only.

    Raises:
        BudgetMissedError: If none is predicted to meet the budget.
        DeviceError: If networks were measured, and none could be built and run.
    """
    promised = _promised(closed, goal.budget_ms)
    if not promised:
        raise missed(closed, goal.budget_ms, wider)
    tell.note(
        "the plan is predicted, not measured: to measure it and its neighbours, "
        f"{remedy}, import the answers (--import FILE) and search again"
    )
    chosen = max(_promised(closed, goal.limit_ms) or promised, key=_score)
    why = "it is predicted to be the best within the budget"
    return Choice(closed, [Ranked(chosen)], chosen, None, why)


def _promised(closed: Closed, limit_ms: float) -> list[Finalist]:
    """Returns the finalists that were not measured and are predicted within a limit."""
    return [f for f in closed.finalists if f.measured is None and f.predicted_ms <= limit_ms]


def _score(finalist: Finalist) -> float:
    return finalist.plan.score or 0.0


def _why(chosen: Ranked, ranked: Sequence[Ranked]) -> str:
    """Returns what speaks for a finalist, and how the slowest of the others, all within, did."""
    others = [one for one in ranked if one is not chosen]
    if not others:
        return "no other plan that was measured is within the budget"
    slowest = max(others, key=lambda one: one.finalist.ms)
    if chosen.raced is not None:
        by, figures = "learnt most in the first steps of a training", [chosen.score, slowest.score]
    elif chosen.joint is not None:
        by, figures = "loses least as a whole before training", [chosen.joint, slowest.joint]
    else:
        by = "has the best score in the table"
        figures = [_score(chosen.finalist), _score(slowest.finalist)]
    own, other = ("none" if f is None else f"{f:.4g}" for f in figures)
    near = (
        "" if slowest.finalist.measured is None else f" of {slowest.finalist.measured.ratio:.2f}x"
    )
    return (
        f"of {len(ranked)} plans within the budget it {by} (score {own}; {other} for the "
        f"slowest{near})"
    )


def _tell_builds(measured: Measured, tell: Callbacks) -> None:
    """Tells how much building is a matter of luck, where the network was built several times."""
    if len(measured.ratios) > 1:
        tell.note(
            f"{len(measured.ratios)} builds of the network are {min(measured.ratios):.3f} to "
            f"{max(measured.ratios):.3f} times as fast as the original"
        )


def _rank(meeting: list[Finalist], scores: JointScores, finalists: int) -> list[Ranked]:
    """Returns the finalists, the best first: those that raced by what they learnt, then the others.

    The table adds up losses of single replacements; here each network is repaired whole and
    scored on the images that the table was scored on. Where the table decides, and for a single
    finalist, the order of the table stays.
    """
    if decides_alone(scores.problem.importance) or len(meeting) == 1:
        return [Ranked(finalist) for finalist in meeting]
    plans = [finalist.plan for finalist in meeting]
    joint = dict(
        zip((p.candidates for p in plans), scores.of(plans, "scoring finalists"), strict=True)
    )
    raced: dict[Key, Raced] = {}
    if scores.evaluator.races:
        racers = contenders(plans, scores, finalists)
        found = race(racers, scores.evaluator, scores.tell)
        raced = {p.candidates: one for p, one in zip(racers, found, strict=True)}
    ranked = [Ranked(f, joint[f.plan.candidates], raced.get(f.plan.candidates)) for f in meeting]
    return sorted(ranked, key=_merit, reverse=True)


def _merit(ranked: Ranked) -> tuple[float, ...]:
    """Who ran farther is better, then who did better, then who lost less before; see ``race``."""
    return *(ranked.raced.merit if ranked.raced else (0, 0.0)), ranked.joint or 0.0
