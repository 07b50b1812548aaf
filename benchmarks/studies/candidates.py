"""The work of the importance study, one job at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from benchmarks.studies.planning import plan_id
from benchmarks.studies.refit import RefitScorer
from benchmarks.studies.settings import Settings, open_context, published, with_values
from benchmarks.studies.workers import Clock
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.jsonio import Json, append_line, read_lines, sha256_json, write_lines
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import InfeasibleBudgetError
from trt_layermerge.importance import Scorer
from trt_layermerge.merge.repair import REPAIRS
from trt_layermerge.pipeline.context import Context, images_of
from trt_layermerge.pipeline.networks import sample_plans
from trt_layermerge.pipeline.objective import frontier_of
from trt_layermerge.pipeline.repaired import joint_delta
from trt_layermerge.pipeline.stages.importance import scorer_of, to_score
from trt_layermerge.search import Objective, plan_of, solve
from trt_layermerge.search.nearby import SPREADS, perturbed


@dataclass(frozen=True)
class Variant:
    """Another way to calibrate.

    Attributes:
        about: What it is, for the page.
        images: To fit on, and to score on; None for as many as usual.
        repairs: Repairs that are tried; none where a kind has none of them.
        refit: Units behind the block that are fitted anew too; None for the usual scorer.
        head: Whether the classifier is fitted anew as well.
    """

    about: str
    images: int | None = None
    repairs: tuple[str, ...] = REPAIRS
    refit: int | None = None
    head: bool = False


VARIANTS: Mapping[str, Variant] = {
    "merged": Variant("merged as it is; not for fits, which are nothing before", repairs=("none",)),
    "ls-zero": Variant("least squares alone, ridge towards zero", repairs=("none", "ls-zero")),
    "ls-variance": Variant("least squares, variance matched", repairs=("none", "ls-variance")),
    "images-64": Variant("64 images to fit on, 64 to score on", images=64),
    "images-128": Variant("128 and 128 images", images=128),
    "images-2048": Variant("2,048 and 2,048 images", images=2048),
    "refit-head": Variant("the classifier is fitted anew", refit=0, head=True),
    "refit-1": Variant("the next unit is fitted anew", refit=1),
    "refit-1-head": Variant("the next unit and the classifier", refit=1, head=True),
}
"""Ways to calibrate besides the default, by name."""

METHODS = ("calibrate", "finetune")
"""The default and the paper's protocol."""

SHARES = (0.85, 0.75, 0.65, 0.55, 0.45)
"""Predicted latencies at which objectives are compared, as shares of the original's."""

REACH = 0.15
"""Random plans are drawn from this share of changed blocks upwards."""


@dataclass(frozen=True)
class Scoring:
    """The same candidates of a network scored by one method or variant under one seed."""

    network: str
    method: str
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
    if job.method == "merged":
        wanted = [c for c in wanted if c.kind != "fit"]
    path = settings.work / "scores" / f"{job.name}.jsonl"
    if not path.exists():
        write_lines(path, "scores", {}, ())
    _, rows = read_lines(path, "scores")
    done = {row["key"] for row in rows}
    missing = [c for c in wanted if key_of(c) not in done]
    if not missing:
        return rows
    started = time.process_time()
    scorer = scorer_for(context, job)()
    prepared = time.process_time() - started
    for candidate in missing:
        clock.check()
        started = time.process_time()
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
            "seconds": time.process_time() - started,
            "prepared_s": prepared,
        }
        append_line(path, row)
        rows.append(row)
    return rows


def scorer_for(context: Context, job: Scoring) -> Callable[[], Scorer]:
    """Returns what makes the scorer of a method or variant under the job's seed."""
    if job.method == "finetune":
        return scorer_of(published(context, job.seed))
    variant = VARIANTS.get(job.method, Variant(""))
    section = context.recipe.importance
    if variant.images is not None:
        images = {"fit_images": variant.images, "score_images": variant.images}
        section = section.model_copy(update=images)
    context = with_values(context, seed=job.seed, importance=section)
    made = partial(scorer_of(context), repairs=variant.repairs)
    if variant.refit is None:
        return made
    fit, judge = (images_of(part) for part in context.calibration)
    model, graph = context.model, context.graph
    return lambda: RefitScorer(made(), model, graph, fit, judge, variant.refit or 0, variant.head)


def key_of(candidate: Candidate) -> str:
    """Returns a short name of a candidate."""
    return sha256_json(candidate.to_json())[:12]


def random_plans(context: Context, count: int) -> list[MergePlan]:
    """Returns plans of candidates drawn blindly."""
    scored = [c for c in context.candidates if not c.original and c in context.importance]
    return sample_plans(context.graph, scored, round(count / (1 - REACH)), context.seed)[-count:]


def near_plans(context: Context, count: int) -> list[MergePlan]:
    """Returns plans as a search looks at: exact optima of perturbed losses at falling latencies."""
    whole_ms = _predicted(context, MergePlan.of(context.graph, []))
    rng = np.random.default_rng(context.seed)
    plans: dict[tuple[Candidate, ...], MergePlan] = {}
    for share in np.linspace(SHARES[0], SHARES[-1], count):
        table = perturbed(context.importance, max(SPREADS), rng)
        found = frontier_of(context, context.latency, table)
        overhead_ms = context.latency.overhead_ms
        limit_ms = max(share * whole_ms - overhead_ms, float(found.latency_ms[0]))
        plan = plan_of(found.within(limit_ms), overhead_ms)
        plans[plan.candidates] = plan
    return list(plans.values())


def additivity(context: Context, network: str, plans: Sequence[MergePlan], by: str) -> list[Json]:
    """Returns the summed single and the joint loss of plans, repaired in sequence."""
    return [
        {
            "kind": "plan",
            "network": network,
            "by": by,
            "plan": plan_id(plan),
            "blocks": len(plan.changed),
            "sum": -sum(context.importance[c].delta for c in plan.changed),
            "joint": -joint_delta(context, plan),
        }
        for plan in plans
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
