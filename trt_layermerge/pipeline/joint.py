"""The true losses of whole repaired networks, for finalists and for plans drawn around the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceTable, LatencyTable
from trt_layermerge.kinds import families
from trt_layermerge.pipeline import race
from trt_layermerge.pipeline.closing import Closed, Finalist, Key, Tools
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.objective import frontier_of
from trt_layermerge.search import allowed, nearby_plans, plan_of

RACERS = 3
"""Plans of each family that race: those with the least joint loss."""


@dataclass(frozen=True)
class JointScores:
    """Minus the loss of each plan's network, repaired whole; worked out once.

    Measured on the images that the table was scored on, with the objective's reward for capacity.
    """

    context: Context
    known: dict[Key, float] = field(default_factory=dict)

    def of(self, plans: Sequence[MergePlan], label: str) -> list[float]:
        """Returns the scores of some plans, in their order; ``label`` names the progress."""
        from trt_layermerge.pipeline.repaired import joint_delta

        capacity = self.context.recipe.search.objective.capacity
        new = [plan for plan in plans if plan.candidates not in self.known]
        for count, plan in enumerate(new):
            self.context.reporter.progress(label, count, len(new))
            reward = capacity * sum(c.nonlinear for c in plan.candidates)
            self.known[plan.candidates] = joint_delta(self.context, plan) + reward
        self.context.reporter.progress(label, len(new), len(new))
        return [self.known[plan.candidates] for plan in plans]


def widen(
    context: Context, tools: Tools, closed: Closed, limit_ms: float, scores: JointScores
) -> None:
    """Adds to the finalists what was drawn around the best plans and is worth it, measured.

    Args:
        context: The run.
        tools: How to fit, search, measure and price.
        closed: What the closed loop found; finalists, table and frontier are brought up to date.
        limit_ms: Latency that the plans are predicted to meet.
        scores: Of whole networks.
    """
    before = [f.plan for f in closed.meeting(limit_ms)[: context.recipe.search.finalists]]
    scores.of(before, "scoring finalists")
    seen = {f.plan.candidates for f in closed.finalists}
    drawn = [p for p in draw(context, closed.table, limit_ms) if p.candidates not in seen]
    scores.of(drawn, "scoring whole networks")
    worth = [p for p in contenders(context, [*before, *drawn], scores) if p.candidates not in seen]
    context.reporter.note(
        f"{len(drawn)} plans near the best ones were scored whole, {len(worth)} are worth measuring"
    )
    if not worth:
        return
    plans = [tools.price(closed.table, plan) for plan in worth]
    for plan, measured in zip(plans, tools.measure(plans), strict=True):
        closed.finalists.append(Finalist(plan, plan.latency_ms or 0.0, measured))
    closed.table = tools.fit(closed.measured)
    closed.frontier = tools.frontier(closed.table)


def contenders(
    context: Context, plans: Sequence[MergePlan], scores: JointScores
) -> list[MergePlan]:
    """Returns the plans that may be the best one: of each family if they race, else of all.

    Without a race the joint score decides, and as many are returned as there are finalists.
    """
    best = sorted(plans, key=lambda plan: -scores.known[plan.candidates])
    if not race.wanted(context):
        return best[: context.recipe.search.finalists]
    found: dict[Key, MergePlan] = {}
    for kinds in families():
        family = [p for p in best if all(c.kind in kinds for c in p.changed)]
        found |= {plan.candidates: plan for plan in family[:RACERS]}
    return list(found.values())


def draw(context: Context, table: LatencyTable, limit_ms: float) -> list[MergePlan]:
    """Returns the best plan of each family within a predicted latency, and plans near it."""
    plans: dict[Key, MergePlan] = {}
    offers = offers_of(context)
    drawn = shares(context.recipe.search.samples, len(offers))
    for offered, share in zip(offers, drawn, strict=True):

        def solve(
            importance: ImportanceTable, offered: Sequence[Candidate] = offered
        ) -> MergePlan | None:
            found = frontier_of(context, table, importance, offered)
            if found.latency_ms[0] + table.overhead_ms > limit_ms:
                return None
            return plan_of(found.within(limit_ms - table.overhead_ms), table.overhead_ms)

        best = solve(context.importance)
        near = nearby_plans(solve, context.importance, max(0, share - 1), context.seed)
        plans |= {plan.candidates: plan for plan in [best, *near] if plan is not None}
    return list(plans.values())


def offers_of(context: Context) -> list[tuple[Candidate, ...]]:
    """Returns the candidates of each family, without families that offer nothing new."""
    mode = context.recipe.search.mode
    usable = [c for c in context.candidates if not c.original and allowed(c, mode)]
    offers = [tuple(c for c in usable if c.kind in kinds) for kinds in families()]
    return [offer for offer in dict.fromkeys(offers) if offer]


def shares(count: int, families: int) -> list[int]:
    """Returns how many plans to draw in each family; the first ones get what is left over."""
    each, more = divmod(count, families)
    return [each + (number < more) for number in range(families)]
