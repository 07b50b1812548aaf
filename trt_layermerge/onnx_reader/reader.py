"""An ONNX model as an ``fx`` network: its graph made plain, then converted node by node."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
import torch
from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data
from torch import fx

from trt_layermerge.errors import (
    CorruptInputError,
    LayerMergeError,
    UnsupportedModelError,
    UsageError,
    foreign,
)
from trt_layermerge.onnx_reader.converter import Converter
from trt_layermerge.onnx_reader.operators import OPERATORS

MAX_FOLDED_BYTES = 2**30


def read_onnx(
    model: onnx.ModelProto | bytes,
    shape: Sequence[int] | None = None,
    *,
    dtype: torch.dtype | None = torch.float32,
    name: str = "the ONNX model",
) -> fx.GraphModule:
    """Returns the network of an ONNX model, in eval mode.

    Convolutions, normalisations and linear layers are modules named after their ONNX nodes, and
    the batch is free. Several outputs come as a tuple. The names of inputs and outputs in the file
    stand in ``meta["inputs"]`` and ``meta["outputs"]``, in order.

    Args:
        model: The model, serialised or not; it is left untouched.
        shape: Shape of its only input, ``(N, C, H, W)``, where it does not fix all sizes itself;
            a batch that it fixes is kept. None for a model of fixed sizes and any inputs.
        dtype: Float type of weights and casts; None keeps those of the file.
        name: What errors call the model.

    Raises:
        UsageError: If the input has another shape.
        CorruptInputError: If the model is damaged.
        UnsupportedModelError: If it has operators that are not known here, all of them named, or
            uses them in a way that cannot be read, or sizes are free and no shape is given.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(parse_onnx(model, name) if isinstance(model, bytes) else model)
    _name_nodes(fixed)
    _fix_sizes(fixed, shape, name)
    if not fixed.graph.output:
        raise CorruptInputError(f"{name} has no output; export it again")
    damaged = foreign(lambda why: CorruptInputError(f"{name} cannot be read: {why}; export again"))
    # Where graphsurgeon would print its warnings.
    with contextlib.redirect_stdout(sys.stderr), damaged:
        graph = _fold(fixed)
        _refuse_unknown(graph, name)
        return _convert(graph, dtype)


def parse_onnx(
    source: bytes | Path, name: str = "the ONNX model", *, weights: bool = True
) -> onnx.ModelProto:
    """Returns the model of serialised bytes or of a file, checked, its nodes named uniquely.

    Args:
        source: The bytes, or the file.
        name: What errors call the model.
        weights: Whether weights that are kept beside a file (external data) are read too; without
            them a model is not checked.

    Raises:
        CorruptInputError: If it is damaged.
        UnsupportedModelError: If it has operators that ONNX itself does not know.
    """
    try:
        if isinstance(source, bytes):
            model = onnx.load_model_from_string(source)
        else:
            model = onnx.load(str(source), load_external_data=False)
            _check_external(model, source.parent)
            if weights:
                onnx.load_external_data_for_model(model, str(source.parent))
        if weights:
            onnx.checker.check_model(model)
    except Exception as error:  # protobuf, the checker and the file system each have their own
        words = " ".join(str(error).split())[:300]
        if words.startswith("No Op registered for"):
            raise UnsupportedModelError(f"{name} cannot be read: {words}") from error
        raise CorruptInputError(f"{name} is no valid ONNX model: {words}") from error
    _name_nodes(model)
    return model


def _check_external(model: onnx.ModelProto, folder: Path) -> None:
    """Raises ``ValueError`` where weights beside a file are none: a device, a pipe, too short."""
    for tensor in _get_all_tensors(model):
        if not uses_external_data(tensor):
            continue
        info = ExternalDataInfo(tensor)
        file = folder / info.location
        if not file.is_file():
            raise ValueError(f"{info.location}, its external data, is no file beside it")
        end, held = (info.offset or 0) + (info.length or 0), file.stat().st_size
        if end > held:
            raise ValueError(f"{info.location} has {held} bytes, and {tensor.name} ends at {end}")


def model_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Returns the inputs that are no weights, which old files list too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _fix_sizes(model: onnx.ModelProto, shape: Sequence[int] | None, name: str) -> None:
    """Writes the sizes of the input into a model, and forgets those that follow from them."""
    inputs = model_inputs(model)
    if shape is None:
        free = [v.name for v in inputs if not all(d.dim_value for d in _dims(v))]
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
        dims = _dims(inputs[0])
        own = [d.dim_value if d.HasField("dim_value") else None for d in dims]
        if len(own) != len(shape) or any(
            a not in (None, b) for a, b in zip(own[1:], shape[1:], strict=True)
        ):
            typed = "x".join("1" if i == 0 else str(d or "?") for i, d in enumerate(own))
            raise UsageError(
                f"{name} takes inputs of shape {typed}, and {'x'.join(map(str, shape))} was asked "
                "for; set model.input (--input) to the file's"
            )
        for size, dim in zip((own[0] or shape[0], *shape[1:]), dims, strict=True):
            dim.dim_value = size
    del model.graph.value_info[:]  # may hold the sizes of another input
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _dims(value: onnx.ValueInfoProto) -> Any:
    return value.type.tensor_type.shape.dim


def _name_nodes(model: onnx.ModelProto) -> None:
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


def _fold(model: onnx.ModelProto) -> Any:
    """Folds until nothing more becomes constant: a shape that is known may make others known."""
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


def _refuse_unknown(graph: Any, name: str) -> None:
    strange = {f"{node.domain}.{node.op}" for node in graph.nodes if node.domain}
    unknown = sorted({node.op for node in graph.nodes if not node.domain} - set(OPERATORS))
    if {"QuantizeLinear", "DequantizeLinear", "QLinearConv"} & set(unknown):
        raise UnsupportedModelError(
            f"{name} is quantised already, and only float networks can be trained and merged; "
            "give the float network, and quantise what comes out (calibrate)"
        )
    if unknown or strange:
        raise UnsupportedModelError(
            f"{name} has operators that cannot be read: {', '.join([*unknown, *sorted(strange)])}; "
            "name the network of torch that it was exported from, or cut the file before them"
        )


def _unread(node: Any) -> Callable[[str], LayerMergeError]:
    return lambda why: UnsupportedModelError(
        f"the ONNX node {node.name} ({node.op}) cannot be read: {why}; name the network of torch "
        "that it was exported from"
    )


def _convert(graph: Any, dtype: torch.dtype | None) -> fx.GraphModule:
    converter = Converter(dtype)
    for i, value in enumerate(graph.inputs):
        converter.values[value.name] = converter.graph.placeholder(f"input_{i}" if i else "images")
    for node in graph.nodes:
        with foreign(_unread(node)):
            converter.values[node.outputs[0].name] = OPERATORS[node.op](converter, node)
    outputs = tuple(converter.value(value) for value in graph.outputs)
    converter.graph.output(outputs if len(outputs) > 1 else outputs[0])
    network = fx.GraphModule(converter.root, converter.graph, "OnnxNetwork")
    network.meta["inputs"] = tuple(value.name for value in graph.inputs)
    network.meta["outputs"] = tuple(value.name for value in graph.outputs)
    network.graph.eliminate_dead_code()
    network.recompile()
    return network.eval()
