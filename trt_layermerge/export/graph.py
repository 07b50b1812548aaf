"""What every step on an ONNX graph needs: to read it, to check it, and to write it again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import onnx
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from trt_layermerge.errors import CorruptInputError, UnsupportedModelError

INVALID = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
"""What ONNX raises where a model is not valid."""


def parse_model(data: bytes) -> ModelProto:
    """Returns the model of some bytes.

    Raises:
        CorruptInputError: If they are no ONNX model, or one without nodes.
    """
    try:
        model = onnx.load_from_string(data)
    except Exception as error:  # protobuf's error class differs between its versions
        raise CorruptInputError(
            f"these bytes are no ONNX model ({error}); export it again"
        ) from error
    if not model.graph.node:
        raise CorruptInputError("the ONNX model has no nodes; export it again")
    return model


def checked(
    model: ModelProto, refusal: str = "the ONNX model is not valid", end: str = ""
) -> bytes:
    """Returns the bytes of a model that ONNX's checker with strict inference lets pass.

    Args:
        model: The model; the same one gives the same bytes.
        refusal: What is said before the checker's own words.
        end: What is said after them.

    Raises:
        UnsupportedModelError: If it refuses the model.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except INVALID as error:
        raise UnsupportedModelError(f"{refusal}: {first_line(error)}{end}") from error
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def first_line(error: Exception) -> str:
    """Returns the gist of an error whose text may run over pages."""
    return str(error).strip().splitlines()[0]


def set_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Gives a graph other nodes, its own among them or not."""
    nodes = [*nodes]
    del graph.node[:]
    graph.node.extend(nodes)


def fresh_names(graph: GraphProto) -> Callable[[str], str]:
    """Returns a function that makes a wanted name of a value one that the graph does not have.

    Whatever was given out is taken as well: a parameter may be called as what we generate.
    """
    nodes = (name for node in graph.node for name in (*node.input, *node.output))
    ends = (value.name for value in (*graph.input, *graph.output, *graph.initializer))
    taken = {*nodes, *ends}

    def fresh(wanted: str) -> str:
        numbered = (f"{wanted}_{count}" for count in itertools.count(1))
        name = next(name for name in itertools.chain([wanted], numbered) if name not in taken)
        taken.add(name)
        return name

    return fresh


def shape_of(value: ValueInfoProto) -> tuple[int | str, ...]:
    """Returns the shape of a value; a dynamic axis is its name."""
    return tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or "?"
        for d in value.type.tensor_type.shape.dim
    )


def rename(graph: GraphProto, old: str, new: str) -> None:
    """Gives a value another name in every node, in place.

    Args:
        graph: What holds the nodes; its inputs and outputs keep their names.
        old: The value's name.
        new: Its name from now on; nothing in the graph may have it yet.
    """
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
