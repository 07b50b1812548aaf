"""``latency``: candidates → ``latency.jsonl``, fitted to whole networks measured on the device.

Blocks are measured one by one, then some whole networks of random plans are built and measured
beside the original, and the block latencies are corrected until they add up to networks.
"""

from __future__ import annotations

from trt_layermerge.core.candidate import original_candidate
from trt_layermerge.core.jsonio import Json, write_lines
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.measure.fit import Observation, fit_latency
from trt_layermerge.measure.table import measure_specs
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.models import network_inputs
from trt_layermerge.pipeline.networks import measure_plans, sample_plans, specs_of, useful
from trt_layermerge.pipeline.stage import Stage


def _settings(context: Context) -> Json:
    measure = context.recipe.measure
    return {
        "measure": measure.model_dump(mode="json", exclude={"store"}),
        "device": context.backend.device().to_json(),
        "model": network_inputs(context.recipe.model),
        "seed": context.seed,
    }


def _run(context: Context) -> tuple[str, ...]:
    measure, graph = context.recipe.measure, context.graph
    candidates = [*context.candidates, *(original_candidate(graph, u.index) for u in graph.units)]
    bare = measure_specs(
        [spec for c in candidates for spec in c.costs],
        context.backend,
        measure.precision,
        measure.batch,
        context.store,
        on_progress=lambda done, total: context.reporter.progress("measuring", done, total),
        rounds=measure.rounds,
    )
    bare.save(context.folder / "latency_bare.jsonl")
    faster = useful(graph, candidates, bare, measure.precision, measure.batch)
    plans = [MergePlan.of(graph, []), *sample_plans(graph, faster, measure.networks, context.seed)]
    reference_ms, measured = measure_plans(context, plans, None, measure.rounds)
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
