"""The work of the importance study, one job at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from benchmarks.studies.planning import plan_id
from benchmarks.studies.refit import RefitScorer
from benchmarks.studies.settings import Settings, calibration, published, run_of, starts_of
from benchmarks.studies.workers import Clock
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.jsonio import Json, append_line, read_lines, sha256_json, write_lines
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.errors import InfeasibleBudgetError
from trt_layermerge.importance.calibrate import CalibrateScorer
from trt_layermerge.importance.distance import Distance
from trt_layermerge.importance.table import Scorer
from trt_layermerge.pipeline.run import Run
from trt_layermerge.search import Objective, plan_of
from trt_layermerge.search.nearby import SPREADS, perturbed
from trt_layermerge.search.problem import Problem
from trt_layermerge.search.sampling import sample_plans
from trt_layermerge.search.solve import plan_within
from trt_layermerge.session.images import calibration_of, images_of
from trt_layermerge.session.scoring import scorer_of, to_score
from trt_layermerge.session.searching import problem_of


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
    repairs: tuple[str, ...] | None = None
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

FORMS: tuple[Literal["delta", "exp"], ...] = ("delta", "exp")
"""The objectives that are compared."""

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
    run = run_of(settings, settings.network(job.network), "full")
    session = run.session
    offered = to_score(session.graph, session.candidates, run.latency, run.recipe)
    wanted = drawn(offered, job.count)
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
    scorer = scorer_for(run, job)()
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


def scorer_for(run: Run, job: Scoring) -> Callable[[], Scorer]:
    """Returns what makes the scorer of a method or variant under the job's seed."""
    session, recipe = run.session, run.recipe.model_copy(update={"seed": job.seed})
    model, graph = session.model, session.graph
    if job.method == "finetune":
        return scorer_of(model, graph, run.train, published(recipe, len(run.train)))
    variant, section = VARIANTS.get(job.method, Variant("")), recipe.importance
    sizes = (variant.images or section.fit_images, variant.images or section.score_images)
    fit, judge = (images_of(part) for part in calibration_of(run.train, *sizes, job.seed))
    made = partial(
        CalibrateScorer, model, graph, fit, judge, repairs=variant.repairs, seed=job.seed
    )
    if variant.refit is None:
        return made
    return partial(RefitScorer, made(), model, graph, fit, judge, variant.refit, variant.head)


def key_of(candidate: Candidate) -> str:
    """Returns a short name of a candidate."""
    return sha256_json(candidate.to_json())[:12]


def random_plans(run: Run, count: int) -> list[MergePlan]:
    """Returns plans of candidates drawn blindly."""
    session = run.session
    scored = [c for c in session.candidates if not c.original and c in session.importance]
    return sample_plans(run.graph, scored, round(count / (1 - REACH)), run.seed)[-count:]


def near_plans(run: Run, count: int) -> list[MergePlan]:
    """Returns plans as a search looks at: exact optima of perturbed losses at falling latencies."""
    problem, table = _problem(run), run.latency
    whole_ms = _predicted(problem, table, MergePlan.of(run.graph, []))
    rng = np.random.default_rng(run.seed)
    plans: dict[tuple[Candidate, ...], MergePlan] = {}
    for share in np.linspace(SHARES[0], SHARES[-1], count):
        found = problem.frontier(table, perturbed(problem.importance, max(SPREADS), rng))
        limit_ms = max(share * whole_ms - table.overhead_ms, float(found.latency_ms[0]))
        plan = plan_of(found.within(limit_ms), table.overhead_ms)
        plans[plan.candidates] = plan
    return list(plans.values())


def additivity(run: Run, network: str, plans: Sequence[MergePlan], by: str) -> list[Json]:
    """Returns the summed single and the joint loss of plans, repaired in sequence."""
    return [
        {
            "kind": "plan",
            "network": network,
            "by": by,
            "plan": plan_id(plan),
            "blocks": len(plan.changed),
            **_losses(run, plan),
        }
        for plan in plans
    ]


def objectives(run: Run, network: str) -> list[Json]:
    """Returns the joint loss of the plans that each objective prefers at equal predicted latency.

    A share that no plan reaches is left out.
    """
    rows = []
    problem, table = _problem(run), run.latency
    whole_ms = _predicted(problem, table, MergePlan.of(run.graph, []))
    for share in SHARES:
        for form in FORMS:
            found = replace(problem, objective=Objective(form)).frontier(table)
            try:
                plan = plan_within(found, table, share * whole_ms, problem.precision, problem.batch)
            except InfeasibleBudgetError:
                continue
            rows.append(
                {
                    "kind": "objective",
                    "network": network,
                    "share": share,
                    "form": form,
                    "plan": plan_id(plan),
                    "predicted_share": _predicted(problem, table, plan) / whole_ms,
                    "blocks": len(plan.changed),
                    "convs": plan.conv_count,
                    "nonlinear": sum(c.nonlinear for c in plan.candidates),
                    **_losses(run, plan),
                }
            )
    return rows


def _problem(run: Run) -> Problem:
    session = run.session
    return problem_of(session.graph, session.candidates, session.importance, run.recipe)


def _predicted(problem: Problem, table: LatencyTable, plan: MergePlan) -> float:
    """Returns the predicted latency of a whole network in ms."""
    return problem.priced(table, plan).latency_ms or 0.0


def _losses(run: Run, plan: MergePlan) -> Json:
    """Returns the sum of the single losses of a plan's blocks, and its joint loss."""
    importance, starts = run.session.importance, starts_of(run)
    images = images_of(calibration(run)[1])
    with torch.no_grad():
        distance = Distance.to([starts.model(images)], starts.kinds)
        joint = distance.of(iter([starts.repaired(plan)(images)]))
    return {
        "sum": -sum(importance[c].delta for c in plan.changed),
        "joint": joint,
    }
