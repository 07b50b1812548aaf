"""Tables and a budget → the frontier, measured finalists, and the plan that is chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.inputs import chunks
from trt_layermerge.core.jsonio import Json, write_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.streams import with_channels, with_counterparts
from trt_layermerge.core.tables import ImportanceTable, LatencyTable
from trt_layermerge.errors import InfeasibleBudgetError
from trt_layermerge.finetune.device import lent
from trt_layermerge.finetune.evaluate import outputs_of
from trt_layermerge.importance.distance import Distance
from trt_layermerge.measure.fit import Observation, fit_latency
from trt_layermerge.search import Frontier, Objective
from trt_layermerge.search.choosing import Choice, Goal, Imported, Ranked
from trt_layermerge.search.closing import Closed, Tools
from trt_layermerge.search.evaluator import Measured
from trt_layermerge.search.problem import Problem
from trt_layermerge.search.sampling import inside_of, specs_of
from trt_layermerge.search.solve import fastest_ms, plan_of
from trt_layermerge.session.latency import Latencies
from trt_layermerge.session.networks import Networks
from trt_layermerge.session.recorded import Recorded
from trt_layermerge.session.settings import ObjectiveSection, SearchSection, Settings
from trt_layermerge.session.starts import Starts
from trt_layermerge.session.training import Racers

BUILDS = 3
"""How often the engine of the chosen network is built: builders choose kernels by chance too."""


STOPS = 40
"""Plans of the frontier that are written with all that they change."""

HOPELESS = 2.0
"""How often the budget the fastest plan is predicted to take before nothing needs to be scored."""


@dataclass(frozen=True)
class WholeNetworks:
    """Measures, scores and trains the networks of plans (``search.evaluator.Evaluator``).

    Attributes:
        networks: Builds and times them.
        starts: Repairs them, to be scored.
        racers: Trains them.
        score: Images ``(N, C, H, W)``, or several inputs, that they are scored on.
        original_ms: Latency of the original in the first measurement.
        builds: How often a network is built when it is measured again.
        alone: Whether the table decides alone (``search.problem.decides_alone``).
    """

    networks: Networks
    starts: Starts
    racers: Racers
    score: Any
    original_ms: float
    builds: int
    alone: bool

    def measure(self, plans: Sequence[MergePlan]) -> list[Measured]:
        """Returns each plan's latency, timed in turns with the original."""
        rounds = self.starts.settings.measure.rounds
        return self.networks.measure(plans, self.original_ms, rounds)[1]

    def measure_again(self, plan: MergePlan) -> Measured:
        """Returns a second measurement, for the first one flatters what was picked by it."""
        rounds = 2 * self.starts.settings.measure.rounds
        _, (again,) = self.networks.measure([plan], self.original_ms, rounds, self.builds)
        return again

    def joint_delta(self, plan: MergePlan) -> float:
        """Returns minus the loss of the whole repaired network."""
        return -self._distance.of(self._answers(self.starts.repaired(plan)))

    @cached_property
    def _distance(self) -> Distance:
        """The distance from the original's answers, in the unit of the table."""
        return Distance.to([*self._answers(self.starts.model)], self.starts.kinds)

    def _answers(self, network: nn.Module) -> Iterator[dict[str, Tensor]]:
        """Yields a network's outputs on the images that it is scored on, batch by batch."""
        with lent(self.starts.settings.device, network):
            for part in chunks(self.score, self.starts.batch):
                yield outputs_of(network, part)

    @cached_property
    def races(self) -> bool:
        """Whether plans are trained a little; not where the table decides."""
        return not self.alone and self.racers.steps > 0

    def climb(self, plan: MergePlan, racer: int, rungs: int) -> list[float]:
        """Trains a plan's network up to a rung."""
        return self.racers.climb(plan, racer, rungs)


def objective_of(wanted: ObjectiveSection, method: str | None) -> Objective:
    """Returns what the search maximises; ``method`` is how its table was made."""
    if wanted.form != "auto":
        return Objective(wanted.form, wanted.capacity)
    if method == "spectral":
        return Objective("worst")
    return Objective("exp" if method == "finetune" else "delta", wanted.capacity)


def goal_of(settings: Settings, original_ms: float, samples: int | None = None) -> Goal:
    """Returns what is looked for; a budget in ms comes before a speed-up.

    Args:
        settings: What is looked for, and how hard.
        original_ms: Latency of the original.
        samples: Plans drawn around the best ones; None for as many as the settings say.
    """
    search = settings.search
    return Goal(
        original_ms,
        search.budget_ms or original_ms / search.speedup,
        search.budget_ms is not None,
        search.headroom,
        search.finalists,
        search.loops,
        search.samples if samples is None else samples,
        settings.seed,
    )


def wider(search: SearchSection) -> str:
    """Returns how more candidates can be allowed, behind other advice; "" where all are."""
    usual, full = SearchSection(), search.rules == "full"
    typed = [
        text
        for text, narrower in (
            ("--rules full", not full),
            ("--mode layermerge", search.mode != usual.mode),
            (
                f"--set search.kinds=[{','.join(usual.kinds)}]",
                full and not set(search.kinds) >= set(usual.kinds),
            ),
            (
                f"--set search.limits.max_units={usual.limits.max_units}",
                full and search.limits.max_units < usual.limits.max_units,
            ),
        )
        if narrower
    ]
    return f", or allow more candidates ({' '.join(typed)})" if typed else ""


def refuse_hopeless(
    graph: LayerGraph,
    candidates: Sequence[Candidate],
    latencies: Latencies,
    settings: Settings,
    limit_ms: float | None = None,
) -> None:
    """Checks, before candidates are scored for hours, that a budget is not out of all reach.

    Args:
        graph: The traced network.
        candidates: What may stand in its blocks' places.
        latencies: What was measured of them.
        settings: The budget, and which candidates count.
        limit_ms: Latency that the network is held to besides, in the end; None for none.

    Raises:
        InfeasibleBudgetError: If even the fastest plan is predicted to take ``HOPELESS`` times it.
    """
    measure, budget_ms = settings.measure, goal_of(settings, latencies.original_ms).budget_ms
    table = latencies.table
    fastest = fastest_ms(
        graph,
        candidates,
        table,
        precision=measure.precision,
        batch=measure.batch,
        mode=settings.search.mode,
    )
    if fastest > HOPELESS * budget_ms:
        raise InfeasibleBudgetError(
            f"no network meets {budget_ms:.4g} ms on {table.device}: the original takes "
            f"{latencies.original_ms:.4g} ms, and the fastest is predicted to take {fastest:.4g} "
            f"ms, whatever it answers; raise --budget-ms or lower --speedup{wider(settings.search)}"
        )
    if limit_ms is not None and fastest > HOPELESS * limit_ms:
        raise InfeasibleBudgetError(
            f"verify.max_latency_ms allows {limit_ms:.4g} ms, and the fastest network is predicted "
            f"to take {fastest:.4g} ms on {table.device}, whatever it answers; raise it"
            f"{wider(settings.search)}"
        )


def loop_tools(
    problem: Problem, latencies: Latencies, settings: Settings, networks: WholeNetworks
) -> Tools:
    """Returns what the closed loop needs done.

    Args:
        problem: What is searched.
        latencies: What was measured before: bare blocks, and whole networks to fit them to.
        settings: Precision and batch of the fit, and which candidates there are.
        networks: Measures plans.
    """
    measure = settings.measure
    before = [sample.observation for sample in latencies.samples]

    def fit(measured: Sequence[Measured]) -> LatencyTable:
        seen = [
            Observation(specs_of(m.plan), m.ms, inside_of(m.plan))
            for m in measured
            if m.error is None
        ]
        return fit_latency(latencies.bare, [*before, *seen], measure.precision, measure.batch)

    tools = fit, problem.frontier, networks.measure, problem.priced
    return Tools(*tools, wider(settings.search))


def imported_of(recorded: Recorded, problem: Problem, latencies: Latencies) -> Imported:
    """Returns the imported finalists that are still plans of this network's candidates.

    Args:
        recorded: What was imported.
        problem: Its candidates tell which plans still count.
        latencies: The fitted table and the original's latency.
    """
    _, found = recorded.measured(problem.graph, "finalist", latencies.original_ms)
    offered = {c.key for c in problem.candidates}
    known = [m for m in found if all(c.key in offered for c in m.plan.changed)]
    return Imported(known, latencies.table.notes["fit"]["worst_error"], recorded.remedy)


def problem_of(
    graph: LayerGraph,
    candidates: tuple[Candidate, ...],
    importance: ImportanceTable,
    settings: Settings,
) -> Problem:
    """Returns what is searched: candidates, their worth, and what the settings maximise.

    Args:
        graph: The traced network.
        candidates: What may stand in its blocks' places.
        importance: What each of them does to the network.
        settings: Precision, batch, mode and objective.
    """
    search, measure = settings.search, settings.measure
    objective = objective_of(search.objective, importance.notes.get("method"))
    importance = with_counterparts(graph, importance, candidates)
    return Problem(
        graph, candidates, importance, measure.precision, measure.batch, search.mode, objective
    )


def save_choice(
    folder: Path, choice: Choice, problem: Problem, goal: Goal, notes: Mapping[str, object]
) -> MergePlan:
    """Writes ``frontier.json``, ``finalists.json`` and ``plan.json``; returns the plan.

    Args:
        folder: Where to.
        choice: What the search came to.
        problem: What was searched.
        goal: What was looked for.
        notes: What else the plan's file tells.
    """
    ranked = {one.finalist.plan.candidates: one for one in choice.ranked}
    rows = [
        {
            "predicted_ms": f.predicted_ms,
            "measured_ms": f.ms if math.isfinite(f.ms) else None,
            "error": f.measured.error if f.measured else None,
            "score": f.plan.score,
            "joint_score": _finite(known.joint),
            "race_scores": [_finite(s) for s in known.raced.scores] if known.raced else None,
            "chosen": f is choice.chosen,
            "candidates": [c.to_json() for c in f.plan.changed],
        }
        for f in choice.closed.finalists
        for known in [ranked.get(f.plan.candidates, Ranked(f))]
    ]
    save_frontier(folder, choice.closed, problem)
    write_json(folder / "finalists.json", "finalists", {"finalists": rows})
    measured, chosen = choice.measured, choice.chosen
    told = {
        "measured_ms": measured.ms if measured else None,
        "measured_speedup": measured.ratio if measured else None,
        "measured_builds": list(measured.ratios) if measured else [],
        "original_ms": goal.original_ms,
        "why": choice.why,
    }
    plan = replace(
        with_channels(chosen.plan, problem.importance),
        latency_ms=chosen.predicted_ms,
        budget_ms=goal.budget_ms,
        notes={**notes, **told},
    )
    plan.save(folder / "plan.json")
    return plan


def save_frontier(folder: Path, closed: Closed, problem: Problem) -> None:
    """Writes ``frontier.json``: latencies in ms, the overhead included, and scores.

    Args:
        folder: Where to.
        closed: What the closed loop found.
        problem: What was searched.

    Raises:
        DeviceError: If the file cannot be written.
    """
    overhead = closed.table.overhead_ms
    kept = problem.priced(closed.table, MergePlan.of(problem.graph, []))
    body: Json = {
        "points": [[latency + overhead, score] for latency, score in closed.frontier],
        "plans": _stops(closed.frontier, overhead),
        "untouched": [kept.latency_ms, kept.score],
        "overhead_ms": overhead,
        "prediction": dict(closed.table.notes),
    }
    write_json(folder / "frontier.json", "frontier", body)


def _stops(found: Frontier, overhead_ms: float) -> list[Json]:
    """Returns all plans of a short frontier, and those nearest to ``STOPS`` even latencies."""
    latencies = found.latency_ms
    long = len(latencies) > STOPS
    even = np.linspace(latencies[0], latencies[-1], STOPS) if long else latencies
    plans = [
        plan_of(found.solution(index), overhead_ms)
        for index in sorted({int(np.abs(latencies - ms).argmin()) for ms in even})
    ]
    return [
        {
            "predicted_ms": plan.latency_ms,
            "score": plan.score,
            "changes": [c.change._asdict() for c in plan.changed],
        }
        for plan in plans
    ]


def _finite(score: float | None) -> float | None:
    """Returns a score as JSON can hold it: None too where a network's answers are not finite."""
    return score if score is not None and math.isfinite(score) else None
