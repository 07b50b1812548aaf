"""Normalisation and softmax in the graph: the numbers of ``Preprocess``, at every precision."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.deploy.bundles import IMAGENET, network, pixels
from tests.deploy.bundles import run as outputs
from tests.export.free import free_batch
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.errors import CorruptInputError, UnsupportedModelError
from trt_layermerge.export.bake import bake
from trt_layermerge.export.batch import dynamic_batch
from trt_layermerge.export.fp16 import to_precision

RAW = pixels().transpose(0, 3, 1, 2).astype(np.float32)
EVERY_BYTE = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)


def softmax(logits):
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def passing(model):
    """Returns the model with the normalised input as a second output."""
    parsed = onnx.load_from_string(model)
    parsed.graph.output.append(
        helper.make_tensor_value_info("normalised", TensorProto.FLOAT, (1, 3, 8, 6))
    )
    return parsed.SerializeToString()


@pytest.mark.parametrize(
    "preprocess",
    [
        IMAGENET,
        Preprocess(1.0, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        Preprocess(0.1),
    ],
    ids=["imagenet", "255", "other"],
)
def test_every_pixel_is_normalised_to_the_very_bits_of_preprocess(preprocess):
    """With ONNX Runtime's fusions off, which may add in another order."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = passing(bake(network(), preprocess, softmax=False))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for start in range(0, 256, 48):
        images = np.resize(EVERY_BYTE[0, :, :, 0].ravel()[start:], (1, 8, 6, 3)).astype(np.uint8)
        raw = images.transpose(0, 3, 1, 2).astype(np.float32)
        found = session.run(["normalised"], {"input": raw})[0]
        np.testing.assert_array_equal(found, preprocess(images))


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 2e-3)])
def test_the_network_computes_what_it_did_behind_preprocess(precision, tolerance):
    """Half precision rounds the normalised pixels as before: only the softmax's rounding is new."""
    plain = to_precision(network(), precision, keep_io=True)
    expected = softmax(outputs(plain, IMAGENET(pixels())))
    found = outputs(bake(plain, IMAGENET, softmax=True), RAW)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    assert found.sum(1) == pytest.approx([1, 1], abs=1e-6)


def test_a_wrong_scale_is_noticed():
    expected = outputs(bake(network(), IMAGENET, softmax=False), RAW)
    wrong = outputs(bake(network(), Preprocess(1 / 256), softmax=False), RAW)
    assert np.abs(wrong - expected).max() > 1e-3


def test_ends_stay_single_precision_and_names_are_told():
    model = onnx.load_from_string(
        bake(to_precision(network(), "fp16", keep_io=True), IMAGENET, softmax=True)
    )
    ends = [*model.graph.input, *model.graph.output]
    assert [(e.name, e.type.tensor_type.elem_type) for e in ends] == [
        ("input", TensorProto.FLOAT),
        ("prob", TensorProto.FLOAT),
    ]
    assert [n.op_type for n in model.graph.node][:4] == ["Mul", "Sub", "Div", "Cast"]
    assert [n.op_type for n in model.graph.node][-2:] == ["Cast", "Softmax"]


def test_each_half_can_be_had_alone():
    kinds = [
        {node.op_type for node in onnx.load_from_string(model).graph.node} & {"Div", "Softmax"}
        for model in (
            bake(network(), IMAGENET, softmax=False),
            bake(network(), None, softmax=True),
        )
    ]
    assert kinds == [{"Div"}, {"Softmax"}]


def test_a_dynamic_batch_stays_dynamic():
    model = bake(free_batch(network()), IMAGENET, softmax=True)
    assert dynamic_batch(model)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    both = session.run(None, {"input": RAW})[0]
    np.testing.assert_allclose(both, outputs(model, RAW), rtol=0, atol=1e-6)


def test_quantised_graphs_are_baked_too():
    """The first thing that a Q/DQ graph does is to round its input: it must get the same one."""
    model = onnx.load_from_string(network())
    for name, value in (("step", np.float32(0.02)), ("zero", np.int8(0))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    model.graph.node[0].input[0] = "dq"
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["dq"]),
        *model.graph.node,
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    quantised = model.SerializeToString()
    expected = softmax(outputs(quantised, IMAGENET(pixels())))
    found = outputs(bake(quantised, IMAGENET, softmax=True), RAW)
    # Fused, the product may differ in its last bit, which moves a value by one step of 0.02.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_what_cannot_be_baked_is_refused():
    with pytest.raises(CorruptInputError, match="no ONNX model"):
        bake(b"junk", IMAGENET, softmax=True)
    with pytest.raises(UnsupportedModelError, match="without --bake-preprocess"):
        bake(to_precision(network(), "fp16"), IMAGENET, softmax=True)
    with pytest.raises(
        UnsupportedModelError, match=r"3 channels, but data\.preprocess has 1 means"
    ):
        bake(network(), Preprocess(1 / 255, (0.5,), (0.5,)), softmax=True)


def test_generated_names_keep_clear_of_parameters():
    """A network whose own values are called as what is added."""
    model = onnx.load_from_string(network())
    wanted = ["preprocess_mean", "prob", "normalised", "logits_before_softmax"]
    names = dict(zip([t.name for t in model.graph.initializer], wanted, strict=False))
    assert len(names) >= 2
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    found = outputs(bake(model.SerializeToString(), IMAGENET, softmax=True), RAW)
    expected = outputs(bake(network(), IMAGENET, softmax=True), RAW)
    np.testing.assert_array_equal(found, expected)
