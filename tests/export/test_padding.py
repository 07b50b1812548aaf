"""Padding that follows from the size of the input: constant, and part of the layer it is for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from timm import create_model, layers
from timm.layers import pool2d_same
from torch import nn

from tests.nets import randomise
from trt_layermerge.export.batch import with_batch
from trt_layermerge.export.clean import clean
from trt_layermerge.export.exporters import Names
from trt_layermerge.export.fp16 import rounded, to_precision
from trt_layermerge.export.onnx import export_bytes
from trt_layermerge.export.runtime import logits

REL = 1e-5
"""Largest difference over the largest output: both add float32 up in another order."""


def operators(model: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(model).graph.node)


def relative(model: bytes, net: nn.Module, images: torch.Tensor) -> float:
    """How far ONNX Runtime is from torch."""
    with torch.no_grad():
        expected = net(images).numpy()
    return float(np.abs(logits(model, images.numpy()) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_mobilenetv3_small_minimal_100"])
@pytest.mark.filterwarnings("ignore")
def test_tf_networks_export_their_padding_in_their_convolutions(name: str) -> None:
    torch.manual_seed(0)
    net = create_model(name).eval()
    same = sum(isinstance(m, layers.Conv2dSame) for m in net.modules())
    images = torch.randn(2, 3, 64, 64)
    model = export_bytes(net, images[:1], dynamic_batch=True)
    kinds = operators(model)
    assert same == 5
    assert set(kinds) <= {"Conv", "Clip", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
    for batch in (1, 2):
        assert relative(with_batch(model, batch), net, images[:batch]) < REL
    assert operators(export_bytes(net, images[:1])) == kinds


@pytest.mark.parametrize("size", [(17, 22), (16, 15)])
@pytest.mark.filterwarnings("ignore")
def test_pooling_pads_itself(size: tuple[int, int]) -> None:
    """Also in half precision, which has no constant of minus infinity."""
    torch.manual_seed(0)
    net = randomise(
        nn.Sequential(
            layers.Conv2dSame(3, 8, 3, stride=2, bias=True),
            pool2d_same.MaxPool2dSame(3, 2),
            layers.AvgPool2dSame(2, 1),
            nn.ZeroPad2d((1, 0, 2, 1)),
            nn.Conv2d(8, 8, 3, 2, padding=1),
            nn.ConstantPad2d((0, 1, 0, 1), 0.0),
            nn.AvgPool2d(2, 2),
            nn.Flatten(),
        )
    ).eval()
    images = torch.randn(2, 3, *size)
    model = export_bytes(net, images[:1], dynamic_batch=True)
    assert operators(model) == {"Conv": 2, "MaxPool": 1, "AveragePool": 2, "Flatten": 1}
    assert relative(with_batch(model, 2), net, images) < REL
    half = rounded(to_precision(with_batch(model, 2), "fp16", keep_io=True))
    assert relative(half, net, images) < 1e-2


def padded(
    layer: str,
    margins: list[int],
    value: float = 0.0,
    mode: str = "constant",
    extra: bool = False,
    **attributes: object,
) -> onnx.ModelProto:
    """A ``Pad`` and a layer with a window of 3 that reads it."""
    weights = ["w"] if layer == "Conv" else []
    nodes = [
        helper.make_node("Pad", ["x", "pads", "value"], ["padded"], mode=mode),
        helper.make_node(layer, ["padded", *weights], ["y"], kernel_shape=[3, 3], **attributes),
    ]
    if extra:
        nodes.append(helper.make_node("ReduceMean", ["padded"], ["mean"]))
        nodes.append(helper.make_node("Add", ["y", "mean"], ["z"]))
    shape = (1, 2, 7, 8)
    constants = {
        "pads": np.array(margins),
        "value": np.float32(value),
        "w": np.random.default_rng(0).standard_normal((2, 2, 3, 3)).astype(np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("z" if extra else "y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


ONE = [0, 0, 0, 1, 0, 0, 1, 0]
"""A column on the left and a row at the bottom."""

CASES = {
    "sum": (padded("Conv", ONE, pads=[1, 2, 0, 1], strides=[2, 1]), 0),
    "wide": (padded("Conv", [0, 0, 5, 4, 0, 0, 0, 9]), 0),
    "dilated": (padded("Conv", ONE, dilations=[2, 2]), 0),
    "largest": (padded("MaxPool", ONE, -np.inf, pads=[1, 1, 1, 1]), 0),
    "counted": (padded("AveragePool", ONE, count_include_pad=1, pads=[1, 1, 1, 1]), 0),
    "not counted": (padded("AveragePool", ONE, pads=[1, 1, 1, 1]), 1),
    "none of its own": (padded("AveragePool", ONE), 0),
    "zeros before a maximum": (padded("MaxPool", ONE), 1),
    "another number": (padded("Conv", ONE, 1.0), 1),
    "mirrored": (padded("Conv", ONE, mode="reflect"), 1),
    "cut off": (padded("Conv", [0, 0, -1, 1, 0, 0, 0, 1]), 1),
    "more than the window": (padded("MaxPool", [0, 0, 3, 0, 0, 0, 0, 0], -np.inf), 1),
    "rounded up": (padded("MaxPool", ONE, -np.inf, ceil_mode=1, strides=[2, 2]), 1),
    "automatic": (padded("Conv", ONE, auto_pad="SAME_UPPER"), 1),
    "read by others": (padded("Conv", [0] * 7 + [1], extra=True), 1),
}


def tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model without its pads, its ends called as they were."""
    inputs, outputs = (
        [v.name for v in values] for values in (model.graph.input, model.graph.output)
    )
    return clean(model, Names(tuple(inputs), tuple(outputs)))


@pytest.mark.parametrize("case", CASES)
def test_what_a_layer_can_pad_itself(case: str) -> None:
    """Compared with ONNX Runtime on the graph as it was, which pads on its own."""
    model, remaining = CASES[case]
    x = np.random.default_rng(1).standard_normal((1, 2, 7, 8)).astype(np.float32)
    cleaned = tidied(model).SerializeToString()
    assert operators(cleaned)["Pad"] == remaining
    expected = logits(model.SerializeToString(), x)
    np.testing.assert_allclose(logits(cleaned, x), expected, rtol=REL, atol=REL)
    assert np.abs(expected).max() > 0.5


def test_channels_stay_padded_and_axes_are_followed() -> None:
    model = padded("Conv", ONE)
    model.opset_import[0].version = 18
    model.graph.node[0].input.append("axes")
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([1, 0, 0, 2]), "pads"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 2]), "axes"))
    cleaned = tidied(model)
    (conv,) = cleaned.graph.node
    found = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    assert found["pads"] == [0, 1, 2, 0]
    widened = padded("MaxPool", [0, 1, 0, 0, 0, 0, 0, 0], -np.inf)
    assert operators(tidied(widened).SerializeToString())["Pad"] == 1
