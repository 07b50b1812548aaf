"""``graph.json``: a layer graph as a versioned file."""

from __future__ import annotations

from pathlib import Path

from trt_layermerge.core.codec import dump, load
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.jsonio import Json, damage, read_json, write_json

_OPTIONAL = ("further_shapes", "branches", "wholes", "input_types", "bridges", "projections")
"""What is left out of the file where a network has none."""


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
    body = {**dump(graph), "segments": [[s.start, s.end] for s in graph.segments]}
    return {key: value for key, value in body.items() if value or key not in _OPTIONAL}


def graph_from_json(body: Json) -> LayerGraph:
    """Returns the graph of a mapping. Raises what malformed fields cause."""
    segments = [{"start": start, "end": end} for start, end in body["segments"]]
    optional = dict.fromkeys(_OPTIONAL, ())
    return load(LayerGraph, {**optional, **body, "segments": segments})
