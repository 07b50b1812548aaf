"""Single operators of ONNX against its reference and ONNX Runtime, and what torch cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch.nn import functional as F

from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.onnx_reader import load_onnx, read_onnx

SHAPE = (1, 3, 8, 8)


def graph_of(
    nodes: list[Any], weights: dict[str, Any], rank: int = 4, opset: int = 17
) -> onnx.ModelProto:
    """Returns a model from ``x`` to ``y`` in single precision."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("abcd"[:rank]))],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)
UP = RNG.normal(size=(3, 2, 3, 3)).astype(np.float32)
BIAS = RNG.normal(size=2).astype(np.float32)


def resized(scales: tuple[float, ...] = (), sizes: tuple[int, ...] = (), **attrs: Any) -> Any:
    """Returns a ``Resize`` with its constants."""
    weights: dict[str, Any] = {"s": np.array(scales, np.float32)}
    if sizes:
        weights["z"] = np.array(sizes, np.int64)
    inputs = ["x", "", "" if sizes else "s", *(["z"] if sizes else [])]
    return [helper.make_node("Resize", inputs, ["y"], **attrs)], weights


def up(**attrs: Any) -> Any:
    """Returns a ``ConvTranspose`` with its constants."""
    return [helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], **attrs)], {
        "w": UP,
        "b": BIAS,
    }


NODES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "SAME_UPPER": (
        [helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])],
        {"w": KERNEL},
    ),
    "SAME_LOWER": (
        [helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER", strides=[2, 2])],
        {"w": KERNEL},
    ),
    "uneven pool": (
        [
            helper.make_node(
                "MaxPool", ["x"], ["y"], kernel_shape=[3, 3], pads=[0, 0, 1, 1], strides=[2, 2]
            )
        ],
        {},
    ),
    "pool without padding": (
        [helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        {},
    ),
    "gemm": (
        [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("Gemm", ["f", "w", "b"], ["y"], alpha=0.5, beta=2.0),
        ],
        {"w": RNG.normal(size=(192, 5)).astype(np.float32), "b": np.float32(0.25)},
    ),
    "other hard sigmoid": ([helper.make_node("HardSigmoid", ["x"], ["y"])], {}),
    "mean": ([helper.make_node("ReduceMean", ["x"], ["y"], axes=[-1, 2], keepdims=0)], {}),
    "squeeze": (
        [
            helper.make_node("GlobalAveragePool", ["x"], ["p"]),
            helper.make_node("Squeeze", ["p", "axes"], ["s"]),
            helper.make_node("Unsqueeze", ["s", "one"], ["y"]),
        ],
        {"axes": np.array([2, 3]), "one": np.array([-1])},
    ),
    "split": (
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
            helper.make_node("Split", ["t", "sizes"], ["a", "b"], axis=3),
            helper.make_node("Concat", ["b", "a"], ["y"], axis=-1),
        ],
        {"sizes": np.array([1, 2])},
    ),
    "constants first": (
        [
            helper.make_node("Sub", ["c", "x"], ["s"]),
            helper.make_node("Pow", ["s", "two"], ["p"]),
            helper.make_node("Div", ["p", "c"], ["y"]),
        ],
        {"c": np.arange(1, 4, dtype=np.float32)[:, None, None], "two": np.float32(2)},
    ),
    "slice": (
        [helper.make_node("Slice", ["x", "s", "e", "a", "t"], ["y"])],
        {
            "s": np.array([1, 0]),
            "e": np.array([2**63 - 1, 7]),
            "a": np.array([2, -1]),
            "t": np.array([1, 2]),
        },
    ),
}


NODES |= {
    "flatten at 0": ([helper.make_node("Flatten", ["x"], ["y"], axis=0)], {}),
    "flatten at 2": ([helper.make_node("Flatten", ["x"], ["y"], axis=2)], {}),
    "flatten at -1": ([helper.make_node("Flatten", ["x"], ["y"], axis=-1)], {}),
    "flatten at 4": ([helper.make_node("Flatten", ["x"], ["y"], axis=4)], {}),
    "one slope": ([helper.make_node("PRelu", ["x", "w"], ["y"])], {"w": np.float32([0.2])}),
    "slopes": (
        [helper.make_node("PRelu", ["x", "w"], ["y"])],
        {"w": np.float32([0.2, -0.1, 3]).reshape(3, 1, 1)},
    ),
    "up": up(strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    "up uneven": up(strides=[2, 3], pads=[0, 1, 1, 0], dilations=[1, 2]),
    "up SAME_UPPER": up(strides=[2, 2], auto_pad="SAME_UPPER"),
    "up to a shape": up(strides=[2, 2], output_shape=[15, 16]),
    "shape of the input": (
        [
            helper.make_node("Shape", ["x"], ["all"]),
            helper.make_node("Gather", ["all", "two"], ["side"]),
            helper.make_node("Mul", ["side", "three"], ["wide"]),
            helper.make_node("Concat", ["one", "wide", "side"], ["sizes"], axis=0),
            helper.make_node("Reshape", ["x", "sizes"], ["y"]),
        ],
        {
            "one": np.array([-1]),
            "two": np.array([2]),
            "three": np.array([3]),
        },
    ),
    "nearest of torch": resized(
        (1, 1, 2, 3), coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    ),
    "nearest by default": resized((1, 1, 2, 2)),
    "nearest smaller": resized(sizes=(1, 3, 3, 5), nearest_mode="round_prefer_ceil"),
    "linear": resized((1, 1, 2, 1.5), mode="linear"),
    "linear to a size": resized(
        sizes=(1, 3, 13, 5), mode="linear", coordinate_transformation_mode="pytorch_half_pixel"
    ),
    "corners": resized(
        sizes=(1, 3, 15, 4), mode="linear", coordinate_transformation_mode="align_corners"
    ),
    "symmetric": resized(
        (1, 1, 2, 2), mode="linear", coordinate_transformation_mode="half_pixel_symmetric"
    ),
}


def chain(*nodes: tuple[str, list[str], dict[str, Any]]) -> list[Any]:
    """Returns nodes in a row from ``x`` to ``y``; ``-`` stands for what the one before makes."""
    made, names = [], ["x", *(f"t{i}" for i in range(1, len(nodes))), "y"]
    for i, (op, inputs, attrs) in enumerate(nodes):
        given = [names[i] if name == "-" else name for name in inputs]
        made.append(helper.make_node(op, given, [names[i + 1]], **attrs))
    return made


def number(value: float) -> Any:
    return np.float32(value)


HARD_SWISH = {"three": number(3), "low": number(0), "six": number(6)}

NODES |= {
    "linear from the first pixel": resized(
        (1, 1, 2, 2), mode="linear", coordinate_transformation_mode="asymmetric"
    ),
    "linear from the first pixel by less": resized(
        (1, 1, 1.5, 0.5), mode="linear", coordinate_transformation_mode="asymmetric"
    ),
    "Upsample": (
        [helper.make_node("Upsample", ["x", "s"], ["y"])],
        {"s": np.float32([1, 1, 2, 3])},
    ),
    "Upsample, linear": (
        [helper.make_node("Upsample", ["x", "s"], ["y"], mode="linear")],
        {"s": np.float32([1, 1, 2, 3])},
    ),
    "depth to space, DCR": (
        chain(("SpaceToDepth", ["-"], {"blocksize": 2}), ("DepthToSpace", ["-"], {"blocksize": 2})),
        {},
    ),
    "depth to space, CRD": (
        chain(
            ("SpaceToDepth", ["-"], {"blocksize": 4}),
            ("DepthToSpace", ["-"], {"blocksize": 2, "mode": "CRD"}),
        ),
        {},
    ),
    "space to depth": (chain(("SpaceToDepth", ["-"], {"blocksize": 2})), {}),
    "one place": (chain(("Gather", ["-", "i"], {"axis": 1})), {"i": np.array(-1)}),
    "places": (chain(("Gather", ["-", "i"], {"axis": -1})), {"i": np.array([7, 0, -2])}),
    "expand": (
        chain(("ReduceMax", ["-"], {"axes": [2]}), ("Expand", ["-", "s"], {})),
        {"s": np.array([1, 3, 4, 8])},
    ),
    "tile": (chain(("Tile", ["-", "n"], {})), {"n": np.array([1, 2, 1, 3])}),
    "largest": (chain(("Max", ["-", "a", "b"], {})), {"a": number(0.1), "b": KERNEL[0, :, :1, :1]}),
    "smallest": (chain(("Min", ["-", "a"], {})), {"a": number(0.1)}),
    "sum": (chain(("Sum", ["-", "a", "-"], {})), {"a": number(0.1)}),
    "average": (chain(("Mean", ["-", "a", "-"], {})), {"a": number(0.1)}),
    "one input": (chain(("Max", ["-"], {})), {}),
    "normed": (
        chain(("ReduceL2", ["-"], {"axes": [1]}), ("Reciprocal", ["-"], {}), ("Log", ["-"], {})),
        {},
    ),
    "sums": (chain(("ReduceSum", ["-", "a"], {"keepdims": 0})), {"a": np.array([-1])}),
    "sum of all": (chain(("ReduceSum", ["-"], {})), {}),
    "sum of nothing": (chain(("ReduceSum", ["-"], {"noop_with_empty_axes": 1})), {}),
    "smallest of rows": (chain(("ReduceMin", ["-"], {"axes": [3]})), {}),
    "where": (
        chain(("Where", ["m", "-", "a"], {})),
        {"m": np.eye(8, dtype=bool), "a": number(-9)},
    ),
    "einsum": (
        chain(("Einsum", ["-", "w"], {"equation": "nchw,oc->nohw"})),
        {"w": KERNEL[:, :, 0, 0]},
    ),
    "unary": (
        chain(*((op, ["-"], {}) for op in ("Abs", "Neg", "Sin", "Cos", "Softsign", "Celu"))),
        {},
    ),
    "whole numbers": (
        [
            helper.make_node("Floor", ["x"], ["f"]),
            helper.make_node("Ceil", ["x"], ["c"]),
            helper.make_node("Round", ["x"], ["r"]),
            helper.make_node("Sum", ["f", "c", "r"], ["y"]),
        ],
        {},
    ),
    "instance norm": (
        chain(("InstanceNormalization", ["-", "w", "b"], {"epsilon": 0.1})),
        {"w": KERNEL[0, :, 0, 0], "b": KERNEL[1, :, 0, 0]},
    ),
    "group norm of opset 17": (
        chain(
            ("Reshape", ["-", "s"], {}),
            ("InstanceNormalization", ["-", "w", "b"], {}),
            ("Reshape", ["-", "z"], {}),
        ),
        {
            "s": np.array([0, 1, -1]),
            "z": np.array([1, 3, 8, 8]),
            "w": np.ones(1, np.float32),
            "b": np.zeros(1, np.float32),
        },
    ),
    "group norm": (
        chain(("GroupNormalization", ["-", "w", "b"], {"num_groups": 3, "epsilon": 0.1})),
        {"w": KERNEL[0, :, 0, 0], "b": KERNEL[1, :, 0, 0]},
    ),
    "layer norm": (
        chain(("LayerNormalization", ["-", "w", "b"], {"axis": -2, "epsilon": 0.1})),
        {"w": RNG.normal(size=(8, 8)).astype(np.float32), "b": np.ones((8, 8), np.float32)},
    ),
    "layer norm without bias": (
        chain(("LayerNormalization", ["-", "w"], {})),
        {"w": RNG.normal(size=8).astype(np.float32)},
    ),
    "response norm": (chain(("LRN", ["-"], {"size": 3, "alpha": 0.5, "bias": 2.0})), {}),
    "softmax": (chain(("Softmax", ["-"], {"axis": 1})), {}),
    "softmax over all that follows": (chain(("Softmax", ["-"], {})), {}),
    "log softmax over all that follows": (chain(("LogSoftmax", ["-"], {"axis": 2})), {}),
    "hardswish over six": (
        [
            helper.make_node("Add", ["x", "three"], ["a"]),
            helper.make_node("Clip", ["a", "low", "six"], ["c"]),
            helper.make_node("Mul", ["x", "c"], ["m"]),
            helper.make_node("Div", ["m", "six"], ["y"]),
        ],
        HARD_SWISH,
    ),
    "hardswish by a sixth": (
        [
            helper.make_node("Add", ["three", "x"], ["a"]),
            helper.make_node("Clip", ["a", "low", "six"], ["c"]),
            helper.make_node("Div", ["c", "six"], ["d"]),
            helper.make_node("Mul", ["d", "x"], ["y"]),
        ],
        HARD_SWISH,
    ),
}

RANKS = {"gemm": 2, "mean": 2, "squeeze": 3, "shape of the input": 3, "one place": 3, "sums": 3}
RANKS |= {name: 2 for name in NODES if name.startswith("flatten")}
OPSETS = {"symmetric": 19, "group norm": 21, "Upsample": 9, "Upsample, linear": 9}
OPSETS |= {name: 12 for name in NODES if name.endswith("over all that follows")}
"""Operators that are of another opset than 17, or were."""

MIXED = ("sum of all",)
"""What does not keep the images of a batch apart."""

NO_REFERENCE = (
    "Upsample",  # whose reference is none for linear
    "Upsample, linear",
    "depth to space, CRD",
    "softmax over all that follows",  # whose reference is that of opset 13
    "log softmax over all that follows",
    "response norm",  # whose reference leaves out the last channel of each window
)


@pytest.mark.parametrize("name", list(NODES))
def test_operators_compute_what_onnx_says(tmp_path: Path, name: str) -> None:
    nodes, weights = NODES[name]
    model = graph_of(nodes, weights, RANKS.get(name, 4), OPSETS.get(name, 17))
    onnx.save(model, tmp_path / "a.onnx")
    x = RNG.normal(size=SHAPE).astype(np.float32)
    with torch.no_grad():
        network = read_onnx(model) if name in MIXED else load_onnx(tmp_path / "a.onnx", SHAPE)
        found = network(torch.from_numpy(x)).numpy()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_allclose(found, session.run(None, {"x": x})[0], rtol=1e-5, atol=1e-5)
    if name.startswith("up") or name in NO_REFERENCE:  # that of "up" knows no gaps or shapes
        return
    expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_resize_of_opset_10_reads_whole_pixels() -> None:
    nodes = [helper.make_node("Resize", ["x", "s"], ["y"])]
    model = graph_of(nodes, {"s": np.float32([1, 1, 1.5, 2])}, opset=10)
    x = RNG.normal(size=SHAPE).astype(np.float32)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = read_onnx(model)(torch.from_numpy(x)).numpy()
    assert found.shape == (1, 3, 12, 16)
    np.testing.assert_array_equal(found, session.run(None, {"x": x})[0])


@pytest.mark.parametrize(
    "attrs",
    [
        {"mode": "cubic"},
        {"mode": "nearest", "nearest_mode": "ceil"},
        {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"},
    ],
)
def test_a_resize_that_torch_reads_elsewhere_is_refused(attrs: dict[str, Any]) -> None:
    nodes, weights = resized((1, 1, 2, 2), **attrs)
    if attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        weights["r"] = np.float32([0, 0, 0, 0, 1, 1, 1, 1])
        nodes[0].input[1] = "r"
    with pytest.raises(UnsupportedModelError, match=f"mode {attrs['mode']}"):
        read_onnx(graph_of(nodes, weights))


def test_slopes_by_place_are_refused() -> None:
    nodes = [helper.make_node("PRelu", ["x", "w"], ["y"])]
    with pytest.raises(UnsupportedModelError, match="one per channel"):
        read_onnx(graph_of(nodes, {"w": np.ones((3, 8, 8), np.float32)}))


def test_hardswish_in_four_nodes_is_one_activation() -> None:
    for name in ("hardswish over six", "hardswish by a sixth"):
        assert [n.target for n in read_onnx(graph_of(*NODES[name])).graph.nodes][1:-1] == [
            F.hardswish
        ]


@pytest.mark.parametrize(("weight", "value"), [("six", 5), ("three", 2), ("low", -1)])
def test_what_only_looks_like_hardswish_is_none(weight: str, value: float) -> None:
    nodes, weights = NODES["hardswish over six"]
    network = read_onnx(graph_of(nodes, {**weights, weight: number(value)}))
    assert F.hardswish not in [node.target for node in network.graph.nodes]


@pytest.mark.parametrize("name", ["flatten at 2", "flatten at -1", "shape of the input"])
def test_the_batch_is_free_even_where_rows_are_counted(name: str) -> None:
    nodes, weights = NODES[name]
    network = read_onnx(graph_of(nodes, weights, RANKS[name]))
    x = torch.from_numpy(RNG.normal(size=(3, *SHAPE[1:])).astype(np.float32))
    each = [network(image[None]) for image in x]
    torch.testing.assert_close(network(x), torch.cat(each), rtol=0, atol=0)


@pytest.mark.parametrize("sizes", [(1, 192), (1, 3, 64), (24, 8), (6, -1, 4), (1, -1, 2)])
def test_a_batch_that_a_reshape_froze_is_free(sizes: tuple[int, ...]) -> None:
    nodes = [helper.make_node("Reshape", ["x", "sizes"], ["y"])]
    network = read_onnx(graph_of(nodes, {"sizes": np.array(sizes)}, len(sizes)))
    x = torch.from_numpy(RNG.normal(size=(3, *SHAPE[1:])).astype(np.float32))
    each = [image[None].reshape(sizes) for image in x]
    torch.testing.assert_close(network(x), torch.cat(each), rtol=0, atol=0)


def test_functions_of_a_file_are_written_out() -> None:
    inner = [helper.make_node("Neg", ["v"], ["n"]), helper.make_node("Max", ["v", "n"], ["a"])]
    opset = helper.make_opsetid("", 17)
    model = graph_of([helper.make_node("Size", ["x"], ["y"], domain="own")], {})
    model.functions.append(helper.make_function("own", "Size", ["v"], ["a"], inner, [opset]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    x = torch.from_numpy(RNG.normal(size=SHAPE).astype(np.float32))
    assert torch.equal(read_onnx(model)(x), x.abs())
