"""``inspect``: the network → ``graph.json`` and ``candidates.jsonl``."""

from __future__ import annotations

from collections import Counter

from trt_layermerge.core.geometry import mergeable
from trt_layermerge.core.graph_file import graph_to_json, load_graph, save_graph
from trt_layermerge.core.jsonio import Json, read_lines, write_lines
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.search import Limits, enumerate_candidates


def _settings(context: Context) -> Json:
    search = context.recipe.search
    return {
        "model": context.recipe.model.identity(),
        "batch": context.recipe.measure.batch,
        "rules": search.rules,
        "limits": search.limits.model_dump(mode="json"),
    }


def _run(context: Context) -> tuple[str, ...]:
    from trt_layermerge.tracing import trace

    search = context.recipe.search
    graph = trace(context.model, context.example)
    limits = Limits(**search.limits.model_dump())
    offered = enumerate_candidates(graph, search.rules, limits)
    refused = Counter(why for c in offered if (why := mergeable(graph, c)) is not None)
    header = {"rules": search.rules, "offered": len(offered), "refused": dict(refused)}
    rows = [c.to_json() for c in offered if mergeable(graph, c) is None]
    save_graph(graph, context.folder / "graph.json")
    write_lines(context.folder / "candidates.jsonl", "candidates", header, rows)
    if not any(not row["original"] for row in rows):
        context.reporter.note("nothing in this network can merge; see the barriers of inspect")
    return "graph.json", "candidates.jsonl"


def _result(context: Context) -> Json:
    graph = load_graph(context.folder / "graph.json")
    header, rows = read_lines(context.folder / "candidates.jsonl", "candidates")
    return {
        "model": context.recipe.model.name,
        "rules": header["rules"],
        "graph": graph_to_json(graph),
        "blocks": len(graph.blocks(header["rules"])),
        "candidates": dict(Counter(row["kind"] for row in rows)),
        "refused": header["refused"],
    }


STAGE = Stage("inspect", (), _settings, _run, _result)
