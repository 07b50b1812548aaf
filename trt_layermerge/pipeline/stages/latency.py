"""``latency``: candidates → ``latency.jsonl``, fitted to whole networks measured on the device.

Blocks are measured one by one, then some whole networks of random plans are built and measured
beside the original, and the block latencies are corrected until they add up to networks.
"""

from __future__ import annotations

from trt_layermerge.core.candidate import Candidate, original_candidate
from trt_layermerge.core.jsonio import Json, write_lines
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.measure.fit import Observation, fit_latency
from trt_layermerge.measure.meter import SpecRequest
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.networks import (
    Measured,
    measure_plans,
    original_onnx,
    sample_plans,
    specs_of,
    useful,
)
from trt_layermerge.pipeline.recorded import Recorded, source_of
from trt_layermerge.pipeline.stage import Stage


def _settings(context: Context) -> Json:
    measure = context.recipe.measure
    return {
        "measure": measure.model_dump(mode="json", exclude={"store"}),
        **source_of(context),
        "model": context.recipe.model.identity(),
        "seed": context.seed,
    }


def _run(context: Context) -> tuple[str, ...]:
    measure, graph = context.recipe.measure, context.graph
    candidates = [*context.candidates, *(original_candidate(graph, u.index) for u in graph.units)]
    asked = SpecRequest(
        [spec for c in candidates for spec in c.costs],
        measure.precision,
        measure.batch,
        measure.rounds,
        context.store,
        lambda: original_onnx(context),
    )
    bare = context.meter.specs(
        asked, lambda done, total: context.reporter.progress("measuring", done, total)
    )
    bare.save(context.folder / "latency_bare.jsonl")
    reference_ms, measured = _networks(context, candidates, bare)
    rows = [
        {"ms": m.ms, "ratio": m.ratio, "specs": [s.to_json() for s in specs_of(m.plan)]}
        for m in measured
    ]
    header = {"original_ms": reference_ms, "device": bare.device.to_json()}
    write_lines(context.folder / "networks.jsonl", "networks", header, rows)
    observations = [Observation(specs_of(m.plan), m.ms) for m in measured]
    table = fit_latency(bare, observations, measure.precision, measure.batch)
    table.save(context.folder / "latency.jsonl")
    return "latency_bare.jsonl", "networks.jsonl", "latency.jsonl"


def _networks(
    context: Context, candidates: list[Candidate], bare: LatencyTable
) -> tuple[float, list[Measured]]:
    """Returns the original's latency and random networks measured beside it, those that run."""
    measure, graph = context.recipe.measure, context.graph
    if measure.recorded:
        reference_ms, measured = Recorded.of(context).measured(context, "sample", None)
    else:
        faster = useful(graph, candidates, bare, measure.precision, measure.batch)
        plans = sample_plans(graph, faster, measure.networks, context.seed)
        plans = [MergePlan.of(graph, []), *plans]
        reference_ms, measured = measure_plans(context, plans, None, measure.rounds)
    failed = [m.error for m in measured if m.error is not None]
    if failed:
        context.reporter.note(
            f"{len(failed)} of {len(measured)} networks could not be measured and are left out; "
            f"the first said: {failed[0]}"
        )
    return reference_ms, _explained(context, [m for m in measured if m.error is None], bare)


def _explained(context: Context, measured: list[Measured], bare: LatencyTable) -> list[Measured]:
    """Returns the networks all of whose blocks have a latency; all, where that leaves none.

    Where the networks were drawn before anything was measured, a block may run in a network that
    cannot run alone.
    """
    measure = context.recipe.measure

    def failure(network: Measured) -> str | None:
        keys = ((spec, measure.precision, measure.batch) for spec in specs_of(network.plan))
        entries = map(bare.entries.__getitem__, keys)
        return next((entry.error for entry in entries if entry.error is not None), None)

    errors = [error for error in map(failure, measured) if error is not None]
    if not errors or len(errors) == len(measured):
        return measured
    context.reporter.note(
        f"{len(errors)} of {len(measured)} networks contain a block that could not be timed alone, "
        f"and are left out; the first said: {errors[0]}"
    )
    return [network for network in measured if failure(network) is None]


def _result(context: Context) -> Json:
    table = LatencyTable.load(context.folder / "latency.jsonl")
    failed = [str(key[0]) for key, entry in table.entries.items() if entry.error is not None]
    return {
        "device": str(table.device),
        "specs": len(table.entries),
        "failed": failed,
        "overhead_ms": table.overhead_ms,
        **table.notes["fit"],
    }


STAGE = Stage("latency", ("graph.json", "candidates.jsonl"), _settings, _run, _result)
