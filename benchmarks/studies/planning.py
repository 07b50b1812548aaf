"""One plan for every arm, all as near to the same measured latency as there are plans."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.studies.arms import ARMS, PAST, Arm, Tables
from benchmarks.studies.choosing import AGAIN, TOLERANCE, chosen_plan, random_plan, search_of
from benchmarks.studies.journal import Journal
from benchmarks.studies.pruned import Pruning, pruned_near, pruned_onnx
from benchmarks.studies.settings import Network, Settings, run_of
from benchmarks.studies.workers import Checking, Clock
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.jsonio import Json, sha256_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceTable
from trt_layermerge.errors import DeviceError
from trt_layermerge.measure.meter import Beside, Failed
from trt_layermerge.pipeline import api
from trt_layermerge.pipeline.folder import stage_seconds
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.stage import perform
from trt_layermerge.search.closing import Finalist

FINAL_ROUNDS = 60
"""Rounds of the measurement that is reported."""


@dataclass(frozen=True)
class TableJob:
    """The importance table of a network; the work that takes longest before training."""

    network: str
    tables: Tables


def make_table(settings: Settings, job: TableJob, clock: Clock) -> Json:
    """Returns how large an importance table is and how long its stage took, once it is there.

    Seconds are None where an earlier process had begun it: the stage knows its own time alone.
    """
    run = run_of(settings, settings.network(job.network), job.tables, Checking(clock))
    path = run.folder / "importance.jsonl"
    before = len(ImportanceTable.load(path).entries) if path.exists() else 0
    perform(api.stage("importance"), run)
    count = len(run.session.importance.entries)
    seconds = stage_seconds(run.folder)["importance"] if before in (0, count) else None
    return {"network": job.network, "tables": job.tables, "entries": count, "seconds": seconds}


def make_latencies(settings: Settings, network: Network, clock: Clock) -> None:
    """Measures a network's blocks and some whole networks, where that was not done yet."""
    for tables in tables_of(settings):
        run = run_of(settings, network, tables, Checking(clock))
        for name in ("inspect", "latency"):
            perform(api.stage(name), run)


def tables_of(settings: Settings) -> tuple[Tables, ...]:
    """Returns which tables are needed, the more expensive ones first; ours repair every start."""
    asked = {"full", *(arm.tables for arm in settings.arms)}
    order: tuple[Tables, ...] = ("paper", "full", "spectral")
    return tuple(tables for tables in order if tables in asked)


def make_plans(settings: Settings, network: Network, journal: Journal, clock: Clock) -> None:
    """Finds the plans of a network that the journal lacks, then measures all new ones together."""
    choosers = {arm.name: arm.chooser for arm in (*ARMS, *PAST)}
    for arm in settings.arms:
        for speedup in settings.speedups_of(arm):
            for pick in settings.seeds if arm.mode == "random" else (0,):
                same = [
                    row
                    for row in journal.of("plan")
                    if (row["network"], row["speedup"], row["pick"])
                    == (network.name, speedup, pick)
                    and choosers[row["arm"]] == arm.chooser
                ]
                if any(row["arm"] == arm.name for row in same):
                    continue
                clock.check()
                run = run_of(settings, network, arm.tables)
                found = same[0] if same else find_plan(run, network.name, arm, speedup, pick)
                journal.add(**{**found, "arm": arm.name})
    measure_together(settings, network, journal)


def find_plan(run: Run, network: str, arm: Arm, speedup: float, pick: int) -> Json:
    """Returns a row with the arm's plan for a measured speed-up.

    Args:
        run: The run that holds the arm's tables.
        network: Name of the network.
        arm: The method; arms with the same ``chooser`` have the same plans.
        speedup: What the whole network is to measure.
        pick: Seed of a random plan.
    """
    started = time.perf_counter()
    original_ms = run.session.latencies.original_ms
    nothing = MergePlan.of(run.graph, [])
    pruning, ratio = None, 1.0
    if arm.criterion is not None:
        rounds = AGAIN * run.recipe.measure.rounds
        pruning, ratio = pruned_near(run, arm.criterion, original_ms / speedup, rounds, TOLERANCE)
        found, how = Finalist(nothing, original_ms / ratio, None), "pruned"
    elif arm.mode == "untouched":
        found, how = Finalist(nothing, original_ms, None), "untouched"
    else:
        with TemporaryDirectory() as racing:
            search = search_of(run, arm, speedup, Path(racing))
            if arm.mode == "random":
                found, how = random_plan(search, pick), "random"
            else:
                found, how = chosen_plan(search)
    return {
        "kind": "plan",
        "network": network,
        "arm": arm.name,
        "speedup": speedup,
        "pick": pick,
        "plan": plan_id(found.plan, pruning),
        "how": how,
        "predicted_speedup": original_ms / found.predicted_ms,
        "first_speedup": found.measured.ratio if found.measured else ratio,
        "convs": found.plan.conv_count,
        "activations": found.plan.activation_count,
        "candidates": [c.to_json() for c in found.plan.changed],
        **({"pruned": pruning.to_json()} if pruning else {}),
        "seconds": round(time.perf_counter() - started, 1),
    }


def plan_id(plan: MergePlan, pruning: Pruning | None = None) -> str:
    """Returns a short name of what a plan replaces, by what, or of how channels are dropped."""
    changes = [c.to_json() for c in plan.changed]
    return sha256_json(pruning.to_json() if pruning else changes)[:12]


def plan_of_row(graph: LayerGraph, row: Json) -> MergePlan:
    """Returns the plan of a row of the journal; of a pruned network one that replaces nothing."""
    return MergePlan.of(graph, [Candidate.from_json(c) for c in row["candidates"]])


def onnx_of_row(run: Run, row: Json) -> bytes:
    """Returns the network of a row of the journal, to be measured."""
    if "pruned" in row:
        return pruned_onnx(run, Pruning(**row["pruned"]))
    return run.session.networks.plan_onnx(plan_of_row(run.graph, row))


def measure_together(settings: Settings, network: Network, journal: Journal) -> None:
    """Measures all plans of a network in turns with the original, once any of them is new.

    What a plan was chosen by flatters it; the last of these figures are the ones that are reported.
    """
    known = {row["plan"] for row in journal.of("latency") if row["network"] == network.name}
    run = run_of(settings, network, "full")
    plans = {row["plan"]: row for row in journal.of("plan") if row["network"] == network.name}
    if plans.keys() <= known:
        return
    session, measure = run.session, run.recipe.measure
    rounds = measure.rounds if measure.backend == "fake" else max(FINAL_ROUNDS, measure.rounds)
    models = [onnx_of_row(run, row) for row in plans.values()]
    outcomes = session.meter.networks(session.networks.original_onnx, models, rounds)
    if failed := [one for one in outcomes if isinstance(one, Failed)]:
        raise DeviceError(f"a network of {network.name} cannot be measured: {failed[0].error}")
    timed = [one for one in outcomes if isinstance(one, Beside)]
    original_ms = median(one.original_ms for one in timed)
    for name, found in zip(plans, timed, strict=True):
        journal.add(
            kind="latency",
            network=network.name,
            plan=name,
            speedup=found.ratio,
            ms=original_ms / found.ratio,
            original_ms=original_ms,
            device=str(session.meter.device()),
        )
