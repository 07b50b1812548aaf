"""``importance``: candidates worth their latency → ``importance.jsonl``."""

from __future__ import annotations

from collections import Counter

from trt_layermerge.core.jsonio import Json, sha256_file, sha256_json
from trt_layermerge.core.tables import ImportanceTable
from trt_layermerge.pipeline.data_files import data_inputs
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.stage import Stage


def _settings(run: Run) -> Json:
    return {
        "model": run.recipe.model.identity(),
        "importance": run.recipe.importance.model_dump(mode="json"),
        "train": data_inputs(run.recipe.data.train),
        "preprocess": run.preprocessing,
        "seed": run.seed,
        "task": run.recipe.task,
    }


def _run(run: Run) -> tuple[str, ...]:
    # The latencies only decide what is scored, not how, so entries outlive a new latency table.
    notes = {
        "settings": sha256_json(_settings(run)),
        "graph": sha256_file(run.folder / "graph.json"),
        "method": run.recipe.importance.method,
    }
    run.session.score(run.train, notes=notes)
    return ("importance.jsonl",)


def _result(run: Run) -> Json:
    table = ImportanceTable.load(run.folder / "importance.jsonl")
    deltas = sorted(entry.delta for entry in table.entries.values())
    return {
        "method": run.recipe.importance.method,
        "entries": len(table.entries),
        "worst_delta": deltas[0] if deltas else None,
        "best_delta": deltas[-1] if deltas else None,
        "repairs": dict(Counter(str(entry.repair) for entry in table.entries.values())),
    }


STAGE = Stage(
    "importance", ("graph.json", "candidates.jsonl", "latency.jsonl"), _settings, _run, _result
)
