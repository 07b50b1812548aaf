"""An ONNX model as an ``fx`` network: its graph made plain, then converted node by node."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data
from torch import fx

from trt_layermerge.errors import (
    CorruptInputError,
    LayerMergeError,
    UnsupportedModelError,
    foreign,
)
from trt_layermerge.onnx_reader.converter import Converter, title
from trt_layermerge.onnx_reader.cutting import PartlyReadError, last_readable
from trt_layermerge.onnx_reader.operators import OPERATORS
from trt_layermerge.onnx_reader.preparing import folded, name_nodes, with_sizes


def read_onnx(
    model: onnx.ModelProto | bytes,
    *,
    dtype: torch.dtype | None = torch.float32,
    name: str = "the ONNX model",
) -> fx.GraphModule:
    """Returns the network of an ONNX model, in eval mode.

    Convolutions, normalisations and linear layers are modules named after their ONNX nodes, and
    the batch is free. Several outputs come as a tuple. The names of inputs and outputs in the file
    stand in ``meta["inputs"]`` and ``meta["outputs"]``, in order.

    Args:
        model: The model, serialised or not, of fixed sizes; it is left untouched.
        dtype: Float type of weights and casts; None keeps those of the file.
        name: What errors call the model.

    Raises:
        CorruptInputError: If the model is damaged.
        UnsupportedModelError: If it has operators that are not known here, all of them named, or
            uses them in a way that cannot be read, or sizes are free.
    """
    fixed = with_sizes(parse_onnx(model, name) if isinstance(model, bytes) else model, None, name)
    name_nodes(fixed)
    _refuse_quantised(fixed, name)
    if not fixed.graph.output:
        raise CorruptInputError(f"{name} has no output; export it again")
    damaged = foreign(lambda why: CorruptInputError(f"{name} cannot be read: {why}; export again"))
    # Where graphsurgeon would print its warnings.
    with contextlib.redirect_stdout(sys.stderr), damaged:
        graph = folded(fixed)
        return _network(graph, _converted(graph, dtype, name))


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
    name_nodes(model)
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


QUANTISED = ("quantize", "qlinear", "integer", "qgemm", "nbits")
"""Parts of the names, in small letters, of operators whose weights or values are integers."""


def _refuse_quantised(model: onnx.ModelProto, name: str) -> None:
    ops = {node.op_type for node in model.graph.node}
    found = sorted(op for op in ops if any(part in op.lower() for part in QUANTISED))
    if found:
        raise UnsupportedModelError(
            f"{name} is quantised already ({', '.join(found)}): it computes with integers, and "
            "only float networks can be trained and merged; give the float network that it was "
            "made from, and quantise what comes out (calibrate)"
        )


def _converted(graph: Any, dtype: torch.dtype | None, name: str) -> Converter:
    """Returns all nodes of a graph converted.

    Raises:
        PartlyReadError: If some cannot be; it tells all operators that are not known.
    """
    batch = graph.inputs[0].shape[0] if graph.inputs and graph.inputs[0].shape else 1
    converter = Converter(dtype, batch, graph.opset)
    for i, value in enumerate(graph.inputs):
        converter.values[value.name] = converter.graph.placeholder(f"input_{i}" if i else "images")
    unknown: dict[str, Any] = {}
    reasons: list[str] = []
    unread: set[str] = set()
    for node in graph.nodes:
        if node.domain or node.op not in OPERATORS:
            unknown.setdefault(f"{node.domain}.{node.op}" if node.domain else node.op, node)
        elif not any(x.name in unread for x in node.inputs):
            try:
                made = OPERATORS[node.op](converter, node)
                made.meta.setdefault("onnx", title(node))
                converter.values[node.outputs[0].name] = made
                continue
            except LayerMergeError:
                raise
            except Exception as error:  # damaged attributes make torch and numpy raise anything
                reasons.append(f"the {title(node)} cannot be read: {error}")
        unread.update(output.name for output in node.outputs if output.name)
    if unknown:
        named = ", ".join(f"{op} ({_place(node)})" for op, node in sorted(unknown.items()))
        reasons.insert(0, f"{name} has operators that cannot be read: {named}")
    if reasons:
        raise PartlyReadError(
            f"{'; '.join(reasons[:3])}; name the network of torch that it was exported from",
            last_readable(graph, unread),
        )
    return converter


def _place(node: Any) -> str:
    return f"node {node.name}" if node.name else f"which makes {node.outputs[0].name}"


def _network(graph: Any, converter: Converter) -> fx.GraphModule:
    outputs = tuple(converter.value(value) for value in graph.outputs)
    converter.graph.output(outputs if len(outputs) > 1 else outputs[0])
    network = fx.GraphModule(converter.root, converter.graph, "OnnxNetwork")
    network.meta["inputs"] = tuple(value.name for value in graph.inputs)
    network.meta["outputs"] = tuple(value.name for value in graph.outputs)
    network.graph.eliminate_dead_code()
    network.recompile()
    return network.eval()
