"""An ONNX file as a network of torch that can be traced, trained and merged like any other."""

from __future__ import annotations

import contextlib
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
import torch
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from torch import fx

from trt_layermerge.core.jsonio import sha256_file
from trt_layermerge.errors import CorruptInputError, UnsupportedModelError, UsageError
from trt_layermerge.pipeline.onnx_drawing import Drawing
from trt_layermerge.pipeline.onnx_operators import OPERATORS

TOLERANCE = 1e-3
"""Largest difference to ONNX Runtime, relative to the largest output."""

MAX_FOLDED_BYTES = 2**30


def load_onnx(path: Path, shape: tuple[int, int, int, int]) -> fx.GraphModule:
    """Returns the network of an ONNX file, in eval mode.

    Convolutions, normalisations and linear layers are modules named after their ONNX nodes. Weights
    of any float type become single precision, and the batch is free. Where ONNX Runtime is
    installed, both are compared on one random input.

    Args:
        path: The file; weights kept beside it (external data) are read too.
        shape: Shape of the input that the network is used at, ``(N, C, H, W)``.

    Raises:
        UsageError: If there is no such file, or its input has another shape.
        CorruptInputError: If it is damaged.
        UnsupportedModelError: If it has operators that are not known here, all of them named, more
            than one input or output, or does not compute what ONNX Runtime computes.
    """
    model = _read(path)
    graph = _folded(model, path, shape)
    _refuse_unknown(graph, path)
    network = _draw(graph)
    if find_spec("onnxruntime") is not None:
        _compare(network, model, path, shape)
    return network


def onnx_hashes(path: Path) -> dict[str, str]:
    """Returns the hash of an ONNX file and of each file beside it that holds weights, by name."""
    model = _read(path, weights=False)
    named = {
        ExternalDataInfo(tensor).location
        for tensor in model.graph.initializer
        if uses_external_data(tensor)
    }
    return {name: sha256_file(path.parent / name) for name in (path.name, *sorted(named))}


def _read(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    if not path.is_file():
        raise UsageError(f"there is no ONNX file {path}; check --model")
    try:
        model = onnx.load(str(path), load_external_data=weights)
        if weights:
            onnx.checker.check_model(model)
    except Exception as error:  # protobuf, the checker and the file system each have their own
        words = " ".join(str(error).split())[:300]
        raise CorruptInputError(f"{path} is no valid ONNX model: {words}") from error
    return model


def _folded(model: onnx.ModelProto, path: Path, shape: tuple[int, ...]) -> Any:
    """Returns the graph at the given input, with known shapes and constants folded."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    inputs = _images(fixed)
    outputs = [value.name for value in fixed.graph.output]
    if len(inputs) != 1 or len(outputs) != 1:
        raise UnsupportedModelError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs ({', '.join(outputs)}); "
            "only networks with one image input and one logits output are supported"
        )
    dims = inputs[0].type.tensor_type.shape.dim
    own = [d.dim_value if d.HasField("dim_value") else None for d in dims]
    if len(own) != 4 or any(a not in (None, b) for a, b in zip(own[1:], shape[1:], strict=True)):
        typed = "x".join("1" if i == 0 else str(d or "?") for i, d in enumerate(own))
        raise UsageError(
            f"{path} takes inputs of shape {typed}, and the recipe says "
            f"{'x'.join(map(str, shape))}; set model.input (--input) to the file's"
        )
    for size, dim in zip((own[0] or shape[0], *shape[1:]), dims, strict=True):
        dim.dim_value = size
    del fixed.graph.value_info[:]  # may hold the sizes of another input
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        return _fold(fixed)
    except Exception as error:  # graphsurgeon and protobuf raise anything over a damaged file
        raise CorruptInputError(
            f"{path} cannot be read: {type(error).__name__}: {error}; export it again"
        ) from error


def _images(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Returns the inputs that are no weights, which old files list too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _batch(model: onnx.ModelProto) -> int:
    """Returns the batch that a file is fixed to, or 1."""
    return _images(model)[0].type.tensor_type.shape.dim[0].dim_value or 1


def _fold(model: onnx.ModelProto) -> Any:
    """Folds until nothing more becomes constant: a shape that is known may make others known."""
    nodes = -1
    while True:
        graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model, data_prop=True))
        if len(graph.nodes) == nodes:
            return graph
        nodes = len(graph.nodes)
        with contextlib.redirect_stdout(sys.stderr):  # where graphsurgeon would print its warnings
            graph.fold_constants(size_threshold=MAX_FOLDED_BYTES).cleanup()
        model = gs.export_onnx(graph, do_type_check=False)


def _refuse_unknown(graph: Any, path: Path) -> None:
    strange = {f"{node.domain}.{node.op}" for node in graph.nodes if node.domain}
    unknown = sorted({node.op for node in graph.nodes if not node.domain} - set(OPERATORS))
    if {"QuantizeLinear", "DequantizeLinear", "QLinearConv"} & set(unknown):
        raise UnsupportedModelError(
            f"{path} is quantised already, and only float networks can be trained and merged; "
            "give the float network, and quantise what comes out (calibrate)"
        )
    if unknown or strange:
        raise UnsupportedModelError(
            f"{path} has operators that cannot be read: {', '.join([*unknown, *sorted(strange)])}; "
            "name the network of torch that it was exported from, or cut the file before them"
        )


def _draw(graph: Any) -> fx.GraphModule:
    drawing = Drawing()
    drawing.values[graph.inputs[0].name] = drawing.graph.placeholder("images")
    for node in graph.nodes:
        try:
            drawing.values[node.outputs[0].name] = OPERATORS[node.op](drawing, node)
        except (KeyError, ValueError, RuntimeError, TypeError, IndexError) as error:
            raise UnsupportedModelError(
                f"the ONNX node {node.name} ({node.op}) cannot be read: {error}; name the network "
                "of torch that it was exported from"
            ) from error
    drawing.graph.output(drawing.value(graph.outputs[0]))
    network = fx.GraphModule(drawing.root, drawing.graph, "OnnxNetwork")
    network.graph.eliminate_dead_code()
    network.recompile()
    return network.eval()


def _compare(
    network: fx.GraphModule, model: onnx.ModelProto, path: Path, shape: tuple[int, ...]
) -> None:
    """Raises ``UnsupportedModelError`` unless ONNX Runtime computes the same."""
    import onnxruntime

    images = torch.randn(_batch(model), *shape[1:], generator=torch.Generator().manual_seed(0))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    wanted = session.get_inputs()[0]
    kind = {"tensor(float16)": "float16"}.get(wanted.type, "float32")
    outputs = session.run(None, {wanted.name: images.numpy().astype(kind)})
    expected = torch.tensor(outputs[0]).float()
    with torch.no_grad():
        found = network(images)
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    limit = 30 * TOLERANCE if kind == "float16" else TOLERANCE
    if found.shape != expected.shape or not error <= limit:
        raise UnsupportedModelError(
            f"{path} was read, but what was read computes something else: its outputs differ from "
            f"ONNX Runtime's by {error:.1e} of the largest; name the network of torch that it was "
            "exported from"
        )
