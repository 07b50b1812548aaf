"""The true losses of whole repaired networks, for finalists and for plans drawn around the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceTable, LatencyTable
from trt_layermerge.pipeline.closing import Closed, Finalist, Key, Tools
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.objective import frontier_of
from trt_layermerge.search import nearby_plans, plan_of


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
    """Adds to the finalists what was drawn around the best plan and is truly better, measured.

    Args:
        context: The run.
        tools: How to fit, search, measure and price.
        closed: What the closed loop found; finalists, table and frontier are brought up to date.
        limit_ms: Latency that the plans are predicted to meet.
        scores: Of whole networks.
    """
    search = context.recipe.search
    before = [f.plan for f in closed.meeting(limit_ms)[: search.finalists]]
    best = max(scores.of(before, "scoring finalists"))
    seen = {f.plan.candidates for f in closed.finalists}
    drawn = [p for p in draw(context, closed.table, limit_ms) if p.candidates not in seen]
    values = scores.of(drawn, "scoring whole networks")
    better = sorted(
        ((value, plan) for value, plan in zip(values, drawn, strict=True) if value > best),
        key=lambda pair: -pair[0],
    )
    context.reporter.note(
        f"{len(drawn)} plans near the best one were scored whole, {len(better)} are better"
    )
    plans = [tools.price(closed.table, plan) for _, plan in better[: search.finalists]]
    if not plans:
        return
    for plan, measured in zip(plans, tools.measure(plans), strict=True):
        closed.finalists.append(Finalist(plan, plan.latency_ms or 0.0, measured))
    closed.table = tools.fit(closed.measured)
    closed.frontier = tools.frontier(closed.table)


def draw(context: Context, table: LatencyTable, limit_ms: float) -> list[MergePlan]:
    """Returns plans near the best one within a predicted latency, half of them without fits.

    Fits of single convolutions score well alone and compound when many are chosen.
    """
    count = context.recipe.search.samples
    composed = tuple(c for c in context.candidates if c.kind != "fit")
    plans: dict[Key, MergePlan] = {}
    for offered, share in ((context.candidates, count - count // 2), (composed, count // 2)):

        def solve(
            importance: ImportanceTable, offered: tuple[Candidate, ...] = offered
        ) -> MergePlan | None:
            found = frontier_of(context, table, importance, offered)
            if found.latency_ms[0] + table.overhead_ms > limit_ms:
                return None
            return plan_of(found.within(limit_ms - table.overhead_ms), table.overhead_ms)

        near = nearby_plans(solve, context.importance, share, context.seed)
        plans |= {plan.candidates: plan for plan in near}
    return list(plans.values())
