"""The true losses of whole repaired networks, for finalists and for plans drawn around the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceTable, LatencyTable
from trt_layermerge.kinds import families
from trt_layermerge.search.closing import Closed, Finalist, Key, Tools
from trt_layermerge.search.evaluator import Evaluator
from trt_layermerge.search.nearby import nearby_plans
from trt_layermerge.search.problem import Problem
from trt_layermerge.search.solve import allowed, plan_of

RACERS = 3
"""Plans of each family of kinds that race: those with the least joint loss. Fits lose least before
training and compound; what is only removed loses most, and training brings most of it back."""


@dataclass(frozen=True)
class JointScores:
    """Minus the loss of each plan's network, repaired whole; worked out once.

    Measured on the images that the table was scored on, with the objective's reward for capacity.
    """

    problem: Problem
    evaluator: Evaluator
    tell: Callbacks
    known: dict[Key, float] = field(default_factory=dict)

    def of(self, plans: Sequence[MergePlan], label: str) -> list[float]:
        """Returns the scores of some plans, in their order; ``label`` names the progress."""
        capacity = self.problem.objective.capacity
        new = [plan for plan in plans if plan.candidates not in self.known]
        for count, plan in enumerate(new):
            self.tell.progress(label, count, len(new))
            reward = capacity * sum(c.nonlinear for c in plan.candidates)
            self.known[plan.candidates] = self.evaluator.joint_delta(plan) + reward
        self.tell.progress(label, len(new), len(new))
        return [self.known[plan.candidates] for plan in plans]


@dataclass(frozen=True)
class Neighbours:
    """How plans are drawn around the best one, and how many of them are measured.

    Attributes:
        finalists: Plans measured at a time.
        samples: Plans drawn.
        seed: Of what is drawn.
    """

    finalists: int
    samples: int
    seed: int


def widen(
    tools: Tools, closed: Closed, limit_ms: float, scores: JointScores, how: Neighbours
) -> None:
    """Adds to the finalists what was drawn around the best plans and is worth it, measured.

    Args:
        tools: How to fit, search, measure and price.
        closed: What the closed loop found; finalists, table and frontier are brought up to date.
        limit_ms: Latency that the plans are predicted to meet.
        scores: Of whole networks.
        how: How many plans are drawn, and measured.
    """
    before = [f.plan for f in closed.meeting(limit_ms)[: how.finalists]]
    scores.of(before, "scoring finalists")
    seen = {f.plan.candidates for f in closed.finalists}
    near = draw(scores.problem, closed.table, limit_ms, how)
    drawn = [plan for plan in near if plan.candidates not in seen]
    scores.of(drawn, "scoring whole networks")
    best = contenders([*before, *drawn], scores, how.finalists)
    worth = [plan for plan in best if plan.candidates not in seen]
    scores.tell.note(
        f"{len(drawn)} plans near the best ones were scored whole, {len(worth)} are worth measuring"
    )
    if not worth:
        return
    plans = [tools.price(closed.table, plan) for plan in worth]
    for plan, measured in zip(plans, tools.measure(plans), strict=True):
        closed.finalists.append(Finalist(plan, plan.latency_ms or 0.0, measured))
    closed.table = tools.fit(closed.measured)
    closed.frontier = tools.frontier(closed.table)


def contenders(plans: Sequence[MergePlan], scores: JointScores, finalists: int) -> list[MergePlan]:
    """Returns the plans that may be the best one: of each family if they race, else of all.

    Without a race the joint score decides, and as many are returned as there are finalists.

    Args:
        plans: What to choose from; each was scored.
        scores: Of whole networks.
        finalists: How many to return without a race; of no effect with one.
    """
    best = sorted(plans, key=lambda plan: -scores.known[plan.candidates])
    if not scores.evaluator.races:
        return best[:finalists]
    found: dict[Key, MergePlan] = {}
    for kinds in families():
        family = [p for p in best if all(c.kind in kinds for c in p.changed)]
        found |= {plan.candidates: plan for plan in family[:RACERS]}
    return list(found.values())


def draw(
    problem: Problem, table: LatencyTable, limit_ms: float, how: Neighbours
) -> list[MergePlan]:
    """Returns the best plan of each family within a predicted latency, and plans near it.

    Args:
        problem: What is searched.
        table: Latencies, with what a whole network costs besides.
        limit_ms: Predicted latency of the whole network at most.
        how: How many plans, and the seed.
    """
    plans: dict[Key, MergePlan] = {}
    offers = offers_of(problem)
    for offered, share in zip(offers, shares(how.samples, len(offers)), strict=True):

        def solve(
            importance: ImportanceTable, offered: Sequence[Candidate] = offered
        ) -> MergePlan | None:
            found = problem.frontier(table, importance, offered)
            if found.latency_ms[0] + table.overhead_ms > limit_ms:
                return None
            return plan_of(found.within(limit_ms - table.overhead_ms), table.overhead_ms)

        best = solve(problem.importance)
        near = nearby_plans(solve, problem.importance, max(0, share - 1), how.seed)
        plans |= {plan.candidates: plan for plan in [best, *near] if plan is not None}
    return list(plans.values())


def offers_of(problem: Problem) -> list[tuple[Candidate, ...]]:
    """Returns the candidates of each family, without families that offer nothing new."""
    usable = [c for c in problem.candidates if not c.original and allowed(c, problem.mode)]
    offers = [tuple(c for c in usable if c.kind in kinds) for kinds in families()]
    return [offer for offer in dict.fromkeys(offers) if offer]


def shares(count: int, offers: int) -> list[int]:
    """Returns how many plans to draw in each family; the first ones get what is left over."""
    each, more = divmod(count, offers)
    return [each + (number < more) for number in range(offers)]
