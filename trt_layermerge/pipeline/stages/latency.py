"""``latency``: candidates → ``latency.jsonl``, fitted to whole networks measured on the device."""

from __future__ import annotations

from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.session.latency import FILES
from trt_layermerge.session.meters import source_of


def _settings(run: Run) -> Json:
    return {"model": run.recipe.model.identity(), "seed": run.seed}


def _here(run: Run) -> Json:
    measure = run.recipe.measure
    source = source_of(measure, run.folder.root, run.session.meter)
    return {"measure": measure.model_dump(mode="json", exclude={"store"}), **source}


def _run(run: Run) -> tuple[str, ...]:
    run.session.measure()
    return FILES


def _result(run: Run) -> Json:
    table = LatencyTable.load(run.folder / "latency.jsonl")
    failed = [str(key[0]) for key, entry in table.entries.items() if entry.error is not None]
    return {
        "device": str(table.device),
        "specs": len(table.entries),
        "failed": failed,
        "overhead_ms": table.overhead_ms,
        **table.notes["fit"],
    }


READS = ("graph.json", "candidates.jsonl")
STAGE = Stage("latency", READS, _settings, _run, _result, here=_here)
