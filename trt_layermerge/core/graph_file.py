"""``graph.json``: a layer graph as a versioned file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from trt_layermerge.core.conv import ConvSpec, spec_from_json
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.jsonio import Json, damage, read_json, write_json
from trt_layermerge.core.unit import Barrier, ConvUnit, Residual, Segment, Shortcut, UnitNodes


def save_graph(graph: LayerGraph, path: Path) -> None:
    """Writes a graph. Raises ``DeviceError`` if the file cannot be written."""
    write_json(path, "graph", graph_to_json(graph))


def load_graph(path: Path) -> LayerGraph:
    """Returns the graph of a file.

    Raises:
        UsageError: If there is no such file.
        CorruptInputError: If it is damaged.
    """
    body = read_json(path, "graph")
    with damage(path):
        return graph_from_json(body)


def graph_to_json(graph: LayerGraph) -> Json:
    """Returns a JSON-ready mapping that ``graph_from_json`` reads back."""
    return {
        "input_shape": list(graph.input_shape),
        "head_pointwise": graph.head_pointwise,
        "units": [
            {
                "index": u.index,
                "name": u.name,
                "bn": u.bn,
                "activation": u.activation,
                "spec": u.spec.to_json(),
                "nodes": asdict(u.nodes),
                "weight_l1": u.weight_l1,
            }
            for u in graph.units
        ],
        "segments": [[s.start, s.end] for s in graph.segments],
        "residuals": [
            {
                "start": r.start,
                "end": r.end,
                "shortcuts": [
                    {
                        "conv": s.conv,
                        "bn": s.bn,
                        "spec": s.spec.to_json() if s.spec else None,
                        "out": s.out,
                    }
                    for s in r.shortcuts
                ],
            }
            for r in graph.residuals
        ],
        "barriers": [asdict(b) for b in graph.barriers],
    }


def graph_from_json(body: Json) -> LayerGraph:
    """Returns the graph of a mapping. Raises what malformed fields cause."""
    return LayerGraph(
        units=tuple(
            ConvUnit(
                int(u["index"]),
                str(u["name"]),
                u["bn"],
                u["activation"],
                _conv(u["spec"]),
                UnitNodes(**u["nodes"]),
                float(u["weight_l1"]),
            )
            for u in body["units"]
        ),
        segments=tuple(Segment(int(start), int(end)) for start, end in body["segments"]),
        residuals=tuple(
            Residual(
                int(r["start"]),
                int(r["end"]),
                tuple(
                    Shortcut(
                        s["conv"], s["bn"], _conv(s["spec"]) if s["spec"] else None, str(s["out"])
                    )
                    for s in r["shortcuts"]
                ),
            )
            for r in body["residuals"]
        ),
        barriers=tuple(Barrier(**b) for b in body["barriers"]),
        input_shape=tuple(int(n) for n in body["input_shape"]),
        head_pointwise=body["head_pointwise"],
    )


def _conv(data: Any) -> ConvSpec:
    spec = spec_from_json(data)
    if not isinstance(spec, ConvSpec):
        raise TypeError("a unit must be a convolution")
    return spec
