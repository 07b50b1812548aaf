"""Trainings of a study: which are due, and one of them done."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors.torch import save

from benchmarks.studies.arms import COURSES, Arm
from benchmarks.studies.planning import plan_of_row
from benchmarks.studies.pruned import Pruning, pruned
from benchmarks.studies.settings import Settings, run_of, starts_of
from benchmarks.studies.tuning import choice
from benchmarks.studies.workers import Checking, Clock
from trt_layermerge.core.jsonio import Json, read_lines, sha256_json, write_bytes
from trt_layermerge.errors import DivergedError
from trt_layermerge.finetune.evaluate import accuracy
from trt_layermerge.merge import RelaxedNet
from trt_layermerge.pipeline.options import Reporter
from trt_layermerge.pipeline.run import Run
from trt_layermerge.session.settings import FinetuneSection

JOURNAL = "results.jsonl"
"""File of a study's results, in its folder."""


@dataclass(frozen=True)
class Training:
    """One training. Arms whose plans and courses are the same share it."""

    network: str
    plan: str
    course: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return sha256_json(asdict(self))[:16]


Done = dict[Training, Json]
"""Rows of the journal by training."""


def done_trainings(rows: Iterable[Json]) -> Done:
    """Returns the trainings of a journal's rows."""
    return {
        Training(r["network"], r["plan"], r["course"], r["rate"], r["seed"]): r
        for r in rows
        if r["kind"] == "training"
    }


def chosen_rate(
    settings: Settings, network: str, arm: Arm, plans: Sequence[Json], done: Done
) -> float | None:
    """Returns the learning rate that an arm takes by accuracies on ``val``; None while open.

    Every arm chooses once for a network, with the first seed at all speed-ups that it has plans of.
    """
    tried = _tried(settings, network, arm, plans)
    found = {one: done[job]["val"] for one, job in tried.items() if job in done}
    return choice(_rates(settings, arm), _speedups(plans, network, arm), found)


def trainings_of(
    settings: Settings, network: str, arm: Arm, plans: Sequence[Json], rate: float
) -> dict[tuple[float, int], Training]:
    """Returns the trainings of an arm that count, by speed-up and seed."""
    found = {}
    for speedup in _speedups(plans, network, arm):
        for seed in settings.seeds:
            plan = _plan(plans, network, arm, speedup, seed)
            if plan is not None:
                found[speedup, seed] = Training(network, plan, arm.course, rate, seed)
    return found


def due(settings: Settings, plans: Sequence[Json], done: Done) -> tuple[list[Training], int]:
    """Returns the trainings that can begin now, and how many there will be in all."""
    ready: dict[Training, None] = {}
    total = 0
    for network in settings.networks:
        for arm in settings.arms:
            tried = list(_tried(settings, network.name, arm, plans).values())
            rate = chosen_rate(settings, network.name, arm, plans, done)
            if rate is None:
                each = len(_rates(settings, arm)) + len(settings.seeds) - 1
                total += len(_speedups(plans, network.name, arm)) * each - len(tried)
                known = tried
            else:
                counted = trainings_of(settings, network.name, arm, plans, rate)
                known = [*tried, *counted.values()]
            ready |= dict.fromkeys(known)
    missing = [job for job in ready if job not in done]
    return missing, total + len(ready)


def train(settings: Settings, job: Training, clock: Clock) -> Json:
    """Returns the row of a training, done or continued; its weights are left in ``weights``.

    Args:
        settings: The study, whose journal has the plan.
        job: What to train.
        clock: When to stop, after an epoch.
    """
    run = training_run(settings, job, Checking(clock))
    val = run.data("val")
    assert val is not None
    teaching = run.session.teaching(run.train, val)
    started = time.process_time()
    network = start_of(settings, run, job)
    start_s = time.process_time() - started
    before = accuracy(network, val)
    after, seconds, history, diverged = before, 0.0, [], False
    if teaching.recipe is not None:
        try:
            result = teaching(
                network,
                teaching.recipe,
                settings.work / "states" / f"{job.name}.safetensors",
                identity=sha256_json(settings.facts(settings.network(job.network))),
            )
            history = [round(r.val_accuracy or 0.0, 5) for r in result.history]
            seconds = sum(r.seconds for r in result.history)
            after = result.val_accuracy or 0.0
        except DivergedError:
            after, diverged = 0.0, True
    write_bytes(
        weights_of(settings, job),
        save({k: v.contiguous() for k, v in network.state_dict().items()}),
    )
    return {
        "kind": "training",
        **asdict(job),
        "start_val": before,
        "val": after,
        "diverged": diverged,
        "history": history,
        "start_s": round(start_s, 1),
        "seconds": round(seconds, 1),
    }


def training_run(settings: Settings, job: Training, reporter: Reporter | None = None) -> Run:
    """Returns a run whose recipe trains as the job says.

    The same for all arms: both tables hold the same traced network, and repairs are those that
    ``calibrate`` found best, fitted on the same images. The seed draws those images too.
    """
    run = run_of(settings, settings.network(job.network), "full", reporter)
    own, course = run.recipe.finetune, COURSES[job.course].section
    options = {
        **own.options,
        **course.get("options", {}),
        "epochs": settings.network(job.network).epochs,
        "lr": job.rate,
    }
    values = {**own.model_dump(), **course, "options": options}
    changes = {"seed": job.seed, "finetune": FinetuneSection.model_validate(values)}
    return replace(run, recipe=run.recipe.model_copy(update=changes))


def start_of(settings: Settings, run: Run, job: Training, filled: bool = True) -> RelaxedNet:
    """Returns a network before its training.

    Args:
        settings: The study.
        run: Trains as the job says (``training_run``).
        job: Which network.
        filled: Whether it is repaired; not where weights are filled in anyway.
    """
    row = plan_row(settings, job)
    if "pruned" in row:  # by the images of the study, whatever the seed of the training
        first = run_of(settings, settings.network(job.network), "full")
        return pruned(first, Pruning(**row["pruned"]))
    starts, plan = starts_of(run), plan_of_row(run.graph, row)
    return starts.start(plan)[0] if filled else starts.unfilled(plan)


def plan_row(settings: Settings, job: Training) -> Json:
    """Returns the journal's row of the plan that is trained."""
    _, rows = read_lines(settings.work / JOURNAL, "glyphs")
    return next(
        r
        for r in rows
        if r["kind"] == "plan" and (r["network"], r["plan"]) == (job.network, job.plan)
    )


def weights_of(settings: Settings, job: Training) -> Path:
    """Returns the file of the trained relaxed network's weights."""
    return settings.work / "weights" / f"{job.name}.safetensors"


def _tried(
    settings: Settings, network: str, arm: Arm, plans: Sequence[Json]
) -> dict[tuple[float, float], Training]:
    """Returns the trainings that an arm chooses its learning rate by, by rate and speed-up."""
    seed, found = min(settings.seeds), {}
    for rate in _rates(settings, arm):
        for speedup in _speedups(plans, network, arm):
            plan = _plan(plans, network, arm, speedup, seed)
            if plan is not None:
                found[rate, speedup] = Training(network, plan, arm.course, rate, seed)
    return found


def _speedups(plans: Sequence[Json], network: str, arm: Arm) -> list[float]:
    """Returns the speed-ups that an arm has plans of."""
    rows = [row for row in plans if (row["network"], row["arm"]) == (network, arm.name)]
    return list(dict.fromkeys(row["speedup"] for row in rows))


def _rates(settings: Settings, arm: Arm) -> tuple[float, ...]:
    """Returns the learning rates that an arm may choose from."""
    return COURSES[arm.course].rates or settings.rates


def _plan(plans: Sequence[Json], network: str, arm: Arm, speedup: float, seed: int) -> str | None:
    """Returns the plan of an arm, or None while it has none; random plans differ by seed."""
    wanted = (network, arm.name, speedup, seed if arm.mode == "random" else 0)
    for row in plans:
        if (row["network"], row["arm"], row["speedup"], row["pick"]) == wanted:
            return str(row["plan"])
    return None
