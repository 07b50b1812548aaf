"""The batch of an ONNX model changed, and what it computes compared with ONNX Runtime."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tests import nets
from tests.export.free import free_batch
from trt_layermerge.errors import CorruptInputError, UnsupportedModelError, UsageError
from trt_layermerge.export.batch import batch_shapes, dynamic_batch, with_batch
from trt_layermerge.export.fp16 import to_precision
from trt_layermerge.export.onnx import export_bytes

GLYPHS = Path(__file__).parents[2] / "examples" / "glyphs"
TOLERANCE = 1e-5
"""Largest difference over largest output: ONNX Runtime blocks its float32 sums by batch."""


def glyph_net(name):
    spec = importlib.util.spec_from_file_location("glyph_nets", GLYPHS / "nets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)()


def torchvision_net(name):
    return torchvision.models.get_model(name, weights=None, num_classes=7)


NETWORKS = {
    "resnet20": lambda: glyph_net("resnet20"),
    "glyph mobilenet_v2": lambda: glyph_net("mobilenet_v2"),
    "resnet34": lambda: torchvision_net("resnet34"),
    "mobilenet_v2": lambda: torchvision_net("mobilenet_v2"),
}


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def shapes(model):
    graph = onnx.load_from_string(model).graph
    return [
        tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.output)
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_batch_computes_what_batch_one_computes(name):
    torch.manual_seed(0)
    network = nets.randomise(NETWORKS[name]())
    static = export_bytes(network, torch.zeros(1, 3, 32, 32))
    free = free_batch(static)
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    single = np.concatenate([run(static, row[None]) for row in x])
    scale = np.abs(single).max()
    assert (dynamic_batch(static), dynamic_batch(free)) == (False, True)
    assert shapes(free) == [("batch", 3, 32, 32), ("batch", single.shape[1])]
    for model in (free, with_batch(static, 3), with_batch(free, 3)):
        assert np.abs(run(model, x) - single).max() <= TOLERANCE * scale
    assert shapes(with_batch(free, 3)) == [(3, 3, 32, 32), (3, single.shape[1])]
    np.testing.assert_array_equal(run(with_batch(free, 1), x[:1]), run(static, x[:1]))


def test_a_dynamic_export_can_be_fixed():
    model = export_bytes(nets.mobile(), nets.example(), dynamic_batch=True)
    assert dynamic_batch(model)
    fixed = with_batch(model, 5)
    assert not dynamic_batch(fixed)
    assert shapes(fixed) == [(5, 3, 16, 17), (5, 5)]


def test_half_precision_keeps_its_types():
    half = to_precision(export_bytes(nets.mobile(), nets.example()), "fp16", keep_io=True)
    free = onnx.load_from_string(free_batch(half)).graph
    kinds = [v.type.tensor_type.elem_type for v in (*free.input, *free.output)]
    assert kinds == [TensorProto.FLOAT, TensorProto.FLOAT]
    typed = {v.type.tensor_type.elem_type for v in free.value_info}
    assert TensorProto.FLOAT16 in typed


def model_of(nodes, batch=2, **constants):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, 2, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(v), k) for k, v in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def reshape(target, **attributes):
    return model_of(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], **attributes)], shape=target
    )


@pytest.mark.parametrize("target", [[2, 6], [2, -1], [-1, 6], [0, 6]])
def test_frozen_reshape_is_freed(target):
    x = np.arange(18, dtype=np.float32).reshape(3, 2, 3)
    np.testing.assert_array_equal(run(with_batch(reshape(target), 3), x), x.reshape(3, 6))


def test_a_constant_used_elsewhere_is_left_alone():
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["again"]),
        helper.make_node("Cast", ["shape"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["numbers"], ["total"], keepdims=0),
        helper.make_node("Mul", ["again", "total"], ["y"]),
    ]
    x = np.arange(18, dtype=np.float32).reshape(3, 2, 3)
    fixed = with_batch(model_of(nodes, shape=[2, 6]), 3)
    np.testing.assert_array_equal(run(fixed, x), x.reshape(3, 6) * 8)


@pytest.mark.parametrize(
    "model",
    [
        reshape([3, 4]),
        reshape([2, 6], allowzero=1),
        reshape([12]),
        model_of([helper.make_node("Add", ["x", "c"], ["y"])], c=np.ones((2, 2, 3), np.float32)),
    ],
)
def test_a_batch_that_cannot_be_freed_is_refused(model):
    with pytest.raises(UnsupportedModelError, match=r"cannot take a batch of 5.*build\.max_batch"):
        with_batch(model, 5)


def test_a_batch_that_inference_cannot_tell_is_taken():
    """Through floats, as networks work out sizes: ONNX's inference follows integers only."""
    nodes = [
        helper.make_node("Shape", ["x"], ["size"], end=1),
        helper.make_node("Cast", ["size"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "one"], ["times"]),
        helper.make_node("Cast", ["times"], ["rows"], to=TensorProto.INT64),
        helper.make_node("Concat", ["rows", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    fixed = with_batch(model_of(nodes, one=np.float32([1]), rest=[6]), 3)
    x = np.arange(18, dtype=np.float32).reshape(3, 2, 3)
    assert shapes(fixed) == [(3, 2, 3), (3, 6)]
    np.testing.assert_array_equal(run(fixed, x), x.reshape(3, 6))


class Mixed(torch.nn.Module):
    """Two images make one row: no batch but the example's."""

    def forward(self, x):
        return x.reshape(2, -1)


def test_an_export_that_cannot_keep_its_promise_is_refused_at_once():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), Mixed()).eval()
    with pytest.raises(UnsupportedModelError, match=r"keeps the batch.*leave build\.max_batch out"):
        export_bytes(network, torch.zeros(2, 3, 4, 4), dynamic_batch=True)
    assert shapes(export_bytes(network, torch.zeros(2, 3, 4, 4))) == [(2, 3, 4, 4), (2, 64)]


def test_shapes_for_a_profile():
    free = free_batch(reshape([2, 6]))
    assert batch_shapes(free, 1, 4, 8) == {"x": ((1, 2, 3), (4, 2, 3), (8, 2, 3))}
    assert batch_shapes(reshape([2, 6]), 1, 4, 8) == {}
    with pytest.raises(UsageError, match=r"batches of 1, 4 and 2 .*build\.max_batch"):
        batch_shapes(free, 1, 4, 2)
    wide = onnx.load_from_string(free)
    wide.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "w"
    with pytest.raises(UnsupportedModelError, match="'x' has free dimensions besides"):
        batch_shapes(wide.SerializeToString(), 1, 4, 8)


@pytest.mark.parametrize("junk", [b"", b"hello world", b"\x08\x08\x12\xff\x01"])
def test_junk(junk):
    calls = (
        dynamic_batch,
        lambda model: with_batch(model, 1),
        lambda model: batch_shapes(model, 1, 1, 1),
    )
    for call in calls:
        with pytest.raises(CorruptInputError, match="export it again"):
            call(junk)


def test_a_batch_of_nothing():
    with pytest.raises(UsageError, match="--batch"):
        with_batch(reshape([2, 6]), 0)


def test_a_network_of_windows_is_left_alone_at_its_own_batch() -> None:
    """Windows are put into the batch and taken out again: 4 · N maps in between."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x).reshape(-1, 4, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5)
            y = y.reshape(-1, 4, 4, 4).relu()
            return y.reshape(1, 4, 4, 4, 4).mean((1, 3, 4))

    model = export_bytes(Windows().eval(), torch.zeros(1, 3, 8, 8))
    assert with_batch(model, 1) == model
