"""Tiny ONNX networks, and rounding to int8 written out in numpy."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from safetensors.torch import load_file

from trt_layermerge.core.jsonio import read_json
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.export.onnx import export_bytes
from trt_layermerge.quantize.qdq import Ranges

GLYPHS = Path(__file__).parents[2] / "examples" / "glyphs"
PREPROCESS = Preprocess(1 / 255, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def network(nodes: list[NodeProto], shape: tuple[Any, ...], constants: dict[str, Any]) -> bytes:
    """Returns a model from ``x`` of a shape to ``y``, at opset 17."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def residual(seed: int = 22, batch: int | str = "n") -> bytes:
    """Returns conv, depthwise conv, an addition of the input of both, pooling and a ``Gemm``.

    ``x`` is ``(n, 4, 6, 6)``; ``first`` and ``sum`` read the same activation. Seed 22 puts
    about half of ``images`` into each of two classes.
    """
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Relu", ["x"], ["start"], "start"),
        helper.make_node("Conv", ["start", "w1", "b1"], ["c1"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], "relu"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "depth", pads=[1] * 4, group=4),
        helper.make_node("Add", ["c2", "start"], ["s"], "sum"),
        helper.make_node("GlobalAveragePool", ["s"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "head", transB=1),
    ]
    sizes = {"w1": (4, 4, 3, 3), "b1": 4, "w2": (4, 1, 3, 3), "w3": (5, 4), "b3": 5}
    return network(
        nodes, (batch, 4, 6, 6), {name: rng.normal(size=size) for name, size in sizes.items()}
    )


RESIDUAL_RANGES = {"start": 4.0, "r1": 18.0, "f": 12.0}


def images(count: int, seed: int = 1) -> NDArray[np.float32]:
    """Returns inputs of ``residual``."""
    return np.random.default_rng(seed).standard_normal((count, 4, 6, 6), np.float32)


def run(model: bytes, x: NDArray[np.float32], names: list[str] | None = None) -> list[Any]:
    """Returns outputs, or inner values by name, without any optimisation of the graph."""
    proto = onnx.load_from_string(model)
    if names:
        del proto.graph.output[:]
        proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: x})


def constants(model: bytes) -> dict[str, NDArray[Any]]:
    """Returns the initializers by name."""
    graph = onnx.load_from_string(model).graph
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer}


def nodes(model: bytes) -> dict[str, NodeProto]:
    """Returns the nodes by name."""
    return {node.name: node for node in onnx.load_from_string(model).graph.node}


def rounded(values: NDArray[Any], scale: NDArray[Any] | float) -> NDArray[np.float64]:
    """Returns values after a Q/DQ pair, in float64."""
    steps = np.rint(np.asarray(values, np.float64) / scale)
    return np.clip(steps, -128, 127) * scale


@cache
def glyphs(name: str, batch: int | None = None) -> bytes:
    """Returns a trained glyph network as ONNX: of a batch, or of any."""
    sys.path.insert(0, str(GLYPHS))
    try:
        import nets
    finally:
        sys.path.remove(str(GLYPHS))
    module = getattr(nets, name)()
    module.load_state_dict(load_file(GLYPHS / "weights" / f"{name}.safetensors"))
    example = torch.zeros(batch or 1, 3, 32, 32)
    return export_bytes(module.eval(), example, dynamic_batch=batch is None)


@cache
def glyph_images(split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns preprocessed images and labels of a split."""
    with np.load(GLYPHS / "data" / f"{split}.npz") as data:
        return PREPROCESS(data["images"]), data["labels"]


def shipped_ranges(name: str) -> Ranges:
    """Returns the ranges of a glyph network that the repository ships."""
    path = Path(__file__).parents[2] / "calib" / "tables" / f"glyphs-{name}.json"
    tensors = read_json(path, "calibration")["tensors"]
    return {name: tensor["magnitude"] for name, tensor in tensors.items()}
