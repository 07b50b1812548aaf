"""The work of the importance study, one job at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from studies.planning import plan_id
from studies.settings import Settings, open_context, published, with_values
from studies.workers import Clock
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.jsonio import Json, append_line, read_lines, sha256_json, write_lines
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import InfeasibleBudgetError
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.networks import sample_plans
from trt_layermerge.pipeline.repaired import joint_delta
from trt_layermerge.pipeline.stages.importance import scorer_of, to_score
from trt_layermerge.search import Objective, solve

Method = Literal["calibrate", "finetune"]

SHARES = (0.85, 0.75, 0.65, 0.55, 0.45)
"""Predicted latencies at which objectives are compared, as shares of the original's."""

REACH = 0.15
"""Random plans are drawn from this share of changed blocks upwards."""


@dataclass(frozen=True)
class Scoring:
    """The same candidates of a network scored by one method under one seed."""

    network: str
    method: Method
    seed: int
    count: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.network}-{self.method}-{self.count}-{self.seed}"


def drawn(candidates: Sequence[Candidate], count: int, seed: int = 0) -> list[Candidate]:
    """Returns candidates drawn evenly over kinds: where one has too few, the others fill up."""
    rng = np.random.default_rng(seed)
    kinds: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        kinds.setdefault(candidate.kind, []).append(candidate)
    order = [[group[i] for i in rng.permutation(len(group))] for group in kinds.values()]
    found: list[Candidate] = []
    while len(found) < min(count, len(candidates)):
        for group in order:
            if group and len(found) < count:
                found.append(group.pop())
    return sorted(found, key=lambda c: (c.block, c.kind, str(c)))


def score(settings: Settings, job: Scoring, clock: Clock) -> list[Json]:
    """Returns a row for every candidate; those scored before an interruption are kept.

    The seed decides which training images are held out, and all that is random in scoring.
    """
    context = open_context(settings, settings.network(job.network), "full")
    wanted = drawn(to_score(context), job.count)
    chosen = published(context, job.seed) if job.method == "finetune" else context
    path = settings.work / "scores" / f"{job.name}.jsonl"
    if not path.exists():
        write_lines(path, "scores", {}, ())
    _, rows = read_lines(path, "scores")
    done = {row["key"] for row in rows}
    missing = [c for c in wanted if key_of(c) not in done]
    if not missing:
        return rows
    started = time.perf_counter()
    scorer = scorer_of(with_values(chosen, seed=job.seed))()
    prepared = time.perf_counter() - started
    for candidate in missing:
        clock.check()
        started = time.perf_counter()
        entry = scorer.entry(candidate)
        row = {
            "kind": "score",
            "network": job.network,
            "method": job.method,
            "seed": job.seed,
            "key": key_of(candidate),
            "candidate": candidate.kind,
            "about": str(candidate),
            "delta": entry.delta,
            "seconds": time.perf_counter() - started,
            "prepared_s": prepared,
        }
        append_line(path, row)
        rows.append(row)
    return rows


def key_of(candidate: Candidate) -> str:
    """Returns a short name of a candidate."""
    return sha256_json(candidate.to_json())[:12]


def additivity(context: Context, network: str, plans: int) -> list[Json]:
    """Returns the summed single and the joint loss of random plans, repaired in sequence."""
    scored = [c for c in context.candidates if not c.original and c in context.importance]
    wanted = sample_plans(context.graph, scored, round(plans / (1 - REACH)), context.seed)[-plans:]
    return [
        {
            "kind": "plan",
            "network": network,
            "plan": plan_id(plan),
            "blocks": len(plan.changed),
            "sum": -sum(context.importance[c].delta for c in plan.changed),
            "joint": -joint_delta(context, plan),
        }
        for plan in wanted
    ]


def objectives(context: Context, network: str) -> list[Json]:
    """Returns the joint loss of the plans that each objective prefers at equal predicted latency.

    A share that no plan reaches is left out.
    """
    rows = []
    measure, graph = context.recipe.measure, context.graph
    whole_ms = _predicted(context, MergePlan.of(graph, []))
    for share in SHARES:
        for form in ("delta", "exp"):
            try:
                plan = solve(
                    graph,
                    context.candidates,
                    context.latency,
                    context.importance,
                    share * whole_ms,
                    precision=measure.precision,
                    batch=measure.batch,
                    objective=replace(Objective(), form=form),
                )
            except InfeasibleBudgetError:
                continue
            rows.append(
                {
                    "kind": "objective",
                    "network": network,
                    "share": share,
                    "form": form,
                    "plan": plan_id(plan),
                    "predicted_share": _predicted(context, plan) / whole_ms,
                    "blocks": len(plan.changed),
                    "convs": plan.conv_count,
                    "nonlinear": sum(c.nonlinear for c in plan.candidates),
                    "sum": -sum(context.importance[c].delta for c in plan.changed),
                    "joint": -joint_delta(context, plan),
                }
            )
    return rows


def _predicted(context: Context, plan: MergePlan) -> float:
    """Returns the predicted latency of a whole network in ms."""
    measure, table = context.recipe.measure, context.latency
    costs = (table.cost_ms(c, measure.precision, measure.batch) for c in plan.candidates)
    return table.overhead_ms + sum(costs)
