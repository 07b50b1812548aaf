"""An ONNX model made plain: its sizes fixed, its nodes named, what is constant folded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from math import prod
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import inliner

from trt_layermerge.errors import UnsupportedModelError, UsageError

MAX_FOLDED_BYTES = 2**30

WITH_BATCH = ("Expand", "Reshape")
"""Operators whose sizes may be those of the batch that a file was exported with."""


def model_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Returns the inputs that are no weights, which old files list too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def with_sizes(model: onnx.ModelProto, shape: Sequence[int] | None, name: str) -> onnx.ModelProto:
    """Returns a copy of a model with the sizes of its input written into it.

    What followed from other sizes is forgotten. Rows and columns that the file fixes may be others,
    and so may the batch where no node can have it written into it.

    Args:
        model: The model; it is left untouched.
        shape: Of its only input, ``(N, C, H, W)``; None for fixed sizes and any inputs.
        name: What errors call the model.

    Raises:
        UsageError: If the input has another rank or other channels, or the file resizes to sizes of
            its own while others are asked for.
        UnsupportedModelError: If sizes are free and no shape is given, or there are several inputs.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    inputs = model_inputs(fixed)
    if shape is None:
        free = [v.name for v in inputs if None in file_sizes(v)]
        if free:
            raise UnsupportedModelError(
                f"{name} leaves sizes of {', '.join(free)} free; give the shape of its input"
            )
    elif len(inputs) != 1:
        raise UnsupportedModelError(
            f"{name} has {len(inputs)} inputs ({', '.join(v.name for v in inputs)}); only networks "
            "with one image input are supported"
        )
    else:
        own = file_sizes(inputs[0])
        if len(own) != len(shape) or own[1] not in (None, shape[1]):
            raise UsageError(other_sizes(own, shape, name))
        if other_places(own, shape) and (resized := _resized_to_constants(fixed)):
            reason = f"; the ONNX node {resized} (Resize) has sizes that belong to the file's"
            raise UsageError(other_sizes(own, shape, name) + reason)
        written = any(node.op_type in WITH_BATCH for node in fixed.graph.node)
        batch = own[0] if own[0] and written else shape[0]
        for size, dim in zip((batch, *shape[1:]), _dims(inputs[0]), strict=True):
            dim.dim_value = size
    del fixed.graph.value_info[:]  # may hold the sizes of another input
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    return fixed


def file_sizes(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    """Returns the sizes of an input that a file fixes, None for the others."""
    return tuple(d.dim_value if d.dim_value > 0 else None for d in _dims(value))


def other_places(own: Sequence[int | None], shape: Sequence[int]) -> bool:
    """Whether a shape has other rows or columns than a file fixes."""
    return any(a not in (None, b) for a, b in zip(own[2:], shape[2:], strict=True))


def other_sizes(own: Sequence[int | None], shape: Sequence[int], name: str) -> str:
    """Returns what is said where a file cannot be read at the shape that was asked for."""
    typed = "x".join("1" if i == 0 else str(d or "?") for i, d in enumerate(own))
    return (
        f"{name} takes inputs of shape {typed}, and {'x'.join(map(str, shape))} was asked "
        "for; set model.input (--input) to the file's"
    )


def _resized_to_constants(model: onnx.ModelProto) -> str | None:
    """Returns the name of a node that resizes to sizes that stand in the file, if there is one."""
    known = {tensor.name for tensor in model.graph.initializer}
    known |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    for node in model.graph.node:
        if node.op_type == "Resize" and len(node.input) > 3 and node.input[3] in known:
            return str(node.name or node.output[0])
    return None


def _dims(value: onnx.ValueInfoProto) -> Any:
    return value.type.tensor_type.shape.dim


def name_nodes(model: onnx.ModelProto) -> None:
    """Makes the names of nodes unique: ONNX asks for it, and not every exporter does it."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for node in model.graph.node:
        if node.name in seen:
            free = (f"{node.name}_{i}" for i in itertools.count(1))
            node.name = next(name for name in free if name not in taken)
            taken.add(node.name)
        elif node.name:
            seen.add(node.name)


def folded(model: onnx.ModelProto) -> Any:
    """Returns the graph, folded until nothing more becomes constant.

    A shape that is known may make others known.

    Raises:
        UnsupportedModelError: If a constant would become too large.
    """
    if find_spec("onnxruntime") is not None:  # graphsurgeon folds with it, and it warns a lot
        import_module("onnxruntime").set_default_logger_severity(3)
    if model.functions:
        model = inliner.inline_local_functions(model)
    while True:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        _refuse_large_constants(model)
        graph = gs.import_onnx(model)
        nodes = len(graph.nodes)
        graph.fold_constants(size_threshold=MAX_FOLDED_BYTES).cleanup()
        if len(graph.nodes) == nodes:
            return graph
        model = gs.export_onnx(graph, do_type_check=False)


def _refuse_large_constants(model: onnx.ModelProto) -> None:
    """Raises ``UnsupportedModelError`` before a few bytes are folded into gigabytes."""
    sizes = {
        value.name: prod(d.dim_value for d in _dims(value)) for value in model.graph.value_info
    }
    constant = {tensor.name for tensor in model.graph.initializer} | {""}
    for node in model.graph.node:
        if not set(node.input) <= constant:
            continue
        constant |= set(node.output)
        most = max((sizes.get(output, 0) for output in node.output), default=0)
        if 4 * most > MAX_FOLDED_BYTES:
            raise UnsupportedModelError(
                f"the ONNX node {node.name or node.output[0]} ({node.op_type}) makes a constant of "
                f"{most:,} values, and constants of up to {MAX_FOLDED_BYTES >> 20} MiB are read; "
                "export the network again"
            )
