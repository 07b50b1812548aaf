"""``inspect``: the network → ``graph.json`` and ``candidates.jsonl``."""

from __future__ import annotations

from collections import Counter

from trt_layermerge.core.graph import graph_to_json, load_graph
from trt_layermerge.core.jsonio import Json, read_lines
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.stage import Stage


def _settings(run: Run) -> Json:
    search = run.recipe.search
    return {
        "model": run.recipe.model.identity(),
        "batch": run.recipe.measure.batch,
        "rules": search.rules,
        "kinds": list(search.kinds),
        "limits": search.limits.model_dump(mode="json"),
        "task": run.recipe.task,
    }


def _run(run: Run) -> tuple[str, ...]:
    run.session.inspect()
    return "graph.json", "candidates.jsonl"


def _result(run: Run) -> Json:
    from trt_layermerge.session.latency import nothing_merges

    graph = load_graph(run.folder / "graph.json")
    header, rows = read_lines(run.folder / "candidates.jsonl", "candidates")
    return {
        "model": run.recipe.model.name,
        "rules": header["rules"],
        "graph": graph_to_json(graph),
        "blocks": len(graph.blocks(header["rules"])),
        "candidates": dict(Counter(row["kind"] for row in rows)),
        "refused": header["refused"],
        "nothing_merges": (why := nothing_merges(graph, run.session.candidates)),
        "estimate": _estimate(run) if why is None else None,
    }


def _estimate(run: Run) -> Json:
    """Returns about how long tables and a search will take here."""
    from trt_layermerge.session.estimate import Speed, told

    session = run.session
    speed = Speed.of(session.model, session.example, session.macs)
    return told(session.graph, session.candidates, session.macs, speed, session.settings)


STAGE = Stage("inspect", (), _settings, _run, _result)
