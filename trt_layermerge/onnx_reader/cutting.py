"""Cutting an ONNX model at named tensors, and where to cut one that cannot be read whole."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import onnx

from trt_layermerge.errors import UnsupportedModelError, UsageError, did_you_mean

MOVES = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that only lay values out anew: what is before them is the better end of a network."""


class PartlyReadError(UnsupportedModelError):
    """A model of which a part can be read.

    Attributes:
        outputs: The last tensors that can be, by name; none where the part ends with the input.
    """

    def __init__(self, message: str, outputs: Sequence[str]) -> None:
        """Tells what cannot be read, and what can."""
        super().__init__(message)
        self.outputs = tuple(outputs)


def cut(model: onnx.ModelProto, outputs: Sequence[str], name: str) -> onnx.ModelProto:
    """Returns the part of a model that computes some of its tensors, which become its outputs.

    Args:
        model: The model; it is left untouched.
        outputs: Names of tensors that its nodes compute, in the order in which they come out.
        name: What errors call the model.

    Raises:
        UsageError: If a name is none of such a tensor, or comes twice.
    """
    computed = [output for node in model.graph.node for output in node.output if output]
    for i, output in enumerate(outputs):
        if output not in computed:
            hint = did_you_mean(output, computed, 0.4)
            raise UsageError(f"{name} computes no tensor {output!r} (--outputs){hint}")
        if output in outputs[:i]:
            raise UsageError(f"{name} cannot be cut at {output!r} twice; name it once (--outputs)")
    known = onnx.shape_inference.infer_shapes(model).graph
    values = {value.name: value for value in (*known.value_info, *known.output)}
    part = onnx.ModelProto()
    part.CopyFrom(model)
    needed, kept = set(outputs), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del part.graph.node[:], part.graph.input[:], part.graph.output[:], part.graph.initializer[:]
    part.graph.node.extend(reversed(kept))
    part.graph.input.extend(v for v in model.graph.input if v.name in needed)
    part.graph.output.extend(values.get(o, onnx.ValueInfoProto(name=o)) for o in outputs)
    part.graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    return part


def last_readable(graph: Any, unread: Container[str]) -> tuple[str, ...]:
    """Returns the names of the tensors to cut a graph at, so that only readable nodes are left.

    They are what the nodes behind take from the rest, and the outputs that are readable, in the
    order of the graph; where values are only laid out anew, what is before that.

    Args:
        graph: A graph of ``onnx_graphsurgeon``, its nodes in the order of computation.
        unread: Names of the tensors that the unreadable nodes make.
    """
    beyond: set[str] = set()
    ends: list[Any] = []
    for node in graph.nodes:
        made = [output.name for output in node.outputs if output.name]
        if any(x.name in beyond for x in node.inputs) or any(name in unread for name in made):
            beyond.update(made)
            ends += [_before_moves(x) for x in node.inputs if x.name not in beyond]
    ends += [x for x in graph.outputs if x.name not in beyond]
    # What no node makes is the input of the network, or a constant.
    found = {x.name for x in ends if x.inputs and _is_float(x)}
    return tuple(o.name for node in graph.nodes for o in node.outputs if o.name in found)


def _before_moves(tensor: Any) -> Any:
    while tensor.inputs and tensor.inputs[0].op in MOVES:
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _is_float(tensor: Any) -> bool:
    return tensor.dtype is None or np.dtype(tensor.dtype).kind in "fV"  # V: bfloat16
