"""One plan for every arm, all as near to the same measured latency as there are plans."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from studies.arms import ARMS, Arm, Tables
from studies.journal import Journal
from studies.settings import Network, Settings, open_context, with_values
from studies.workers import Checking, Clock
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.conv import spec_from_json
from trt_layermerge.core.jsonio import Json, read_lines, sha256_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceTable, LatencyTable
from trt_layermerge.measure.fit import Observation
from trt_layermerge.pipeline import api
from trt_layermerge.pipeline.choosing import choose, tools_of
from trt_layermerge.pipeline.closing import BudgetMissedError, Finalist, Tools
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.folder import stage_seconds
from trt_layermerge.pipeline.networks import measure_plans, sample_plans, useful
from trt_layermerge.pipeline.objective import priced
from trt_layermerge.pipeline.stage import perform
from trt_layermerge.search import Mode
from trt_layermerge.search.solve import allowed

TOLERANCE = 0.02
"""Largest relative difference from the wanted latency that counts as equal."""

SAMPLES, MEASURED, DRAWS = 1000, 8, 3
"""Random plans that are drawn; how many, the nearest by prediction, are measured; how often."""

SHORTLIST, AGAIN = 6, 3
"""Plans that are measured a second time before one is taken, and how much longer."""

FINAL_ROUNDS = 60


@dataclass(frozen=True)
class TableJob:
    """The importance table of a network; the work that takes longest before training."""

    network: str
    tables: Tables


def make_table(settings: Settings, job: TableJob, clock: Clock) -> Json:
    """Returns how large an importance table is and how long its stage took, once it is there."""
    context = open_context(settings, settings.network(job.network), job.tables, Checking(clock))
    perform(api.stage("importance"), context)
    scored = ImportanceTable.load(context.folder / "importance.jsonl")
    return {
        "network": job.network,
        "tables": job.tables,
        "entries": len(scored.entries),
        "seconds": stage_seconds(context.folder)["importance"],
    }


def make_latencies(settings: Settings, network: Network, clock: Clock) -> None:
    """Measures a network's blocks and some whole networks, where that was not done yet."""
    for tables in tables_of(settings):
        context = open_context(settings, network, tables, Checking(clock))
        for name in ("inspect", "latency"):
            perform(api.stage(name), context)


def tables_of(settings: Settings) -> tuple[Tables, ...]:
    """Returns which tables are needed, the more expensive ones first; ours repair every start."""
    paper = any(arm.tables == "paper" for arm in settings.arms)
    return ("paper", "full") if paper else ("full",)


def make_plans(settings: Settings, network: Network, journal: Journal, clock: Clock) -> None:
    """Finds the plans of a network that the journal lacks, then measures all new ones together."""
    choosers = {arm.name: arm.chooser for arm in ARMS}
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
                context = open_context(settings, network, arm.tables)
                found = same[0] if same else find_plan(context, network.name, arm, speedup, pick)
                journal.add(**{**found, "arm": arm.name})
    measure_together(settings, network, journal)


def find_plan(context: Context, network: str, arm: Arm, speedup: float, pick: int) -> Json:
    """Returns a row with the arm's plan for a measured speed-up.

    Args:
        context: The run that holds the arm's tables.
        network: Name of the network.
        arm: The method; arms with the same ``chooser`` have the same plans.
        speedup: What the whole network is to measure.
        pick: Seed of a random plan.
    """
    started = time.perf_counter()
    original_ms, networks = seen_networks(context)
    target_ms = original_ms / speedup
    if arm.mode == "untouched":
        plan = MergePlan.of(context.graph, [])
        found = Finalist(plan, original_ms, None)
    elif arm.mode == "random":
        found = random_plan(context, target_ms, pick)
    else:
        found = chosen_plan(context, arm, original_ms, networks, target_ms)
    return {
        "kind": "plan",
        "network": network,
        "arm": arm.name,
        "speedup": speedup,
        "pick": pick,
        "plan": plan_id(found.plan),
        "predicted_speedup": original_ms / found.predicted_ms,
        "first_speedup": found.measured.ratio if found.measured else 1.0,
        "convs": found.plan.conv_count,
        "activations": found.plan.activation_count,
        "candidates": [c.to_json() for c in found.plan.changed],
        "seconds": round(time.perf_counter() - started, 1),
    }


def plan_id(plan: MergePlan) -> str:
    """Returns a short name of what a plan replaces, by what."""
    return sha256_json([c.to_json() for c in plan.changed])[:12]


def plan_of_row(context: Context, row: Json) -> MergePlan:
    """Returns the plan of a row of the journal."""
    return MergePlan.of(context.graph, [Candidate.from_json(c) for c in row["candidates"]])


def chosen_plan(
    context: Context,
    arm: Arm,
    original_ms: float,
    networks: Sequence[Observation],
    target_ms: float,
) -> Finalist:
    """Returns the plan that the pipeline's search comes to, or one that is nearer to the target.

    The search looks for the best plan that is no slower than wanted, which may be much faster. To
    compare at equal latency, the best that measures about as wanted is then taken, though the arm's
    own score would prefer the faster one; where there is none, the nearest.
    """
    search = context.recipe.search
    wanted = {"form": arm.form, "capacity": arm.capacity}
    objective = search.objective.model_copy(update=wanted)
    changes: Json = {"mode": arm.mode, "objective": objective}
    context = with_values(context, search=search.model_copy(update=changes))
    tools = tools_of(context, original_ms, networks)
    try:
        choice = choose(context, tools, original_ms, target_ms)
        measured, closed = choice.measured, choice.closed
        if measured is not None and abs(measured.ms / target_ms - 1) <= TOLERANCE:
            return Finalist(choice.chosen.plan, choice.chosen.predicted_ms, measured)
    except BudgetMissedError as missed:
        closed = missed.closed
    found = closed.finalists
    if not _close(found, target_ms):
        usable = [c for c in context.candidates if allowed(c, search_mode(arm))]
        found = drawn_about(context, usable, tools, original_ms, target_ms, found, 0)
    plans = [f.plan for f in sorted(found, key=partial(_order, target_ms))[:SHORTLIST]]
    again = _measured(context, plans, original_ms, AGAIN * context.recipe.measure.rounds)
    return nearest(again, target_ms)


def search_mode(arm: Arm) -> Mode:
    """Returns the mode of the search that an arm uses."""
    return arm.mode if arm.mode in ("depth", "layer") else "layermerge"


def _order(target_ms: float, finalist: Finalist) -> tuple[float, float]:
    """Puts plans within the tolerance first, the best score before others; then the nearest."""
    off = abs(finalist.ms / target_ms - 1)
    return (0.0, -(finalist.plan.score or 0.0)) if off <= TOLERANCE else (off, 0.0)


def nearest(finalists: Iterable[Finalist], target_ms: float) -> Finalist:
    """Returns the best plan within the tolerance, or the one nearest to it where none is."""
    return min(finalists, key=partial(_order, target_ms))


def _measured(
    context: Context, plans: Sequence[MergePlan], original_ms: float, rounds: int
) -> list[Finalist]:
    """Returns plans with their measured latencies."""
    if not plans:
        return []
    _, found = measure_plans(context, plans, original_ms, rounds)
    return [Finalist(m.plan, m.plan.latency_ms or m.ms, m) for m in found]


def drawn_near(
    context: Context,
    candidates: Sequence[Candidate],
    table: LatencyTable,
    target_ms: float,
    seed: int,
) -> list[MergePlan]:
    """Returns random plans of some candidates, those predicted nearest to a latency first."""
    measure, graph = context.recipe.measure, context.graph
    faster = useful(graph, candidates, table, measure.precision, measure.batch)
    known = [c for c in faster if c in context.importance]
    plans = {p.candidates: p for p in sample_plans(graph, known, SAMPLES, 1000 + seed)}
    priced_plans = [priced(context, table, plan) for plan in plans.values()]
    return sorted(priced_plans, key=lambda p: abs((p.latency_ms or 0.0) / target_ms - 1))


def random_plan(context: Context, target_ms: float, seed: int) -> Finalist:
    """Returns a plan that was drawn blindly among those of about the wanted latency."""
    original_ms, networks = seen_networks(context)
    tools = tools_of(context, original_ms, networks)
    found = drawn_about(context, context.candidates, tools, original_ms, target_ms, [], seed)
    return min(found, key=lambda f: abs(f.ms / target_ms - 1))


def drawn_about(
    context: Context,
    candidates: Sequence[Candidate],
    tools: Tools,
    original_ms: float,
    target_ms: float,
    known: Sequence[Finalist],
    seed: int,
) -> list[Finalist]:
    """Returns known plans and random ones, until one measures about as wanted.

    Each of ``DRAWS`` rounds corrects the predictions by what was measured before it.
    """
    found, rounds = list(known), AGAIN * context.recipe.measure.rounds
    for _ in range(DRAWS):
        table = tools.fit([f.measured for f in found if f.measured is not None])
        tried = {f.plan.candidates for f in found}
        plans = drawn_near(context, candidates, table, target_ms, seed)
        new = [plan for plan in plans if plan.candidates not in tried][:MEASURED]
        if not new:
            break
        found += _measured(context, new, original_ms, rounds)
        if _close(found, target_ms):
            break
    return found


def _close(found: Iterable[Finalist], target_ms: float) -> bool:
    """Whether a plan measured within the tolerance."""
    return any(abs(f.ms / target_ms - 1) <= TOLERANCE for f in found)


def seen_networks(context: Context) -> tuple[float, list[Observation]]:
    """Returns the original's latency and the networks that its ``latency`` stage measured."""
    header, rows = read_lines(context.folder / "networks.jsonl", "networks")
    found = [
        Observation(tuple(spec_from_json(s) for s in row["specs"]), float(row["ms"]))
        for row in rows
    ]
    return float(header["original_ms"]), found


def measure_together(settings: Settings, network: Network, journal: Journal) -> None:
    """Measures every plan that has no final latency yet, all in turns with the original.

    What a plan was chosen by flatters it; these are the figures that are reported.
    """
    known = {(row["network"], row["plan"]) for row in journal.of("latency")}
    context = open_context(settings, network, "full")
    new = {
        row["plan"]: plan_of_row(context, row)
        for row in journal.of("plan")
        if row["network"] == network.name and (network.name, row["plan"]) not in known
    }
    if not new:
        return
    rounds = max(FINAL_ROUNDS, context.recipe.measure.rounds)
    if context.recipe.measure.backend == "fake":
        rounds = context.recipe.measure.rounds
    original_ms, measured = measure_plans(context, list(new.values()), None, rounds)
    for name, found in zip(new, measured, strict=True):
        journal.add(
            kind="latency",
            network=network.name,
            plan=name,
            speedup=found.ratio,
            ms=found.ms,
            original_ms=original_ms,
            device=str(context.meter.device()),
        )
