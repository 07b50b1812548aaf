"""Half precision: every type changes, the values round, and what cannot is refused."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.nets import example, mobile
from trt_layermerge.errors import CorruptInputError, UnsupportedModelError, UsageError
from trt_layermerge.export.fp16 import (
    BEYOND_HALF,
    beyond_half,
    kept_in_float,
    rounded,
    to_precision,
)
from trt_layermerge.export.onnx import export_bytes


def net(nodes, constants, out=(1, 2, 4, 4)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2, 4, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def run(data, x):
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def float_types(data):
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data), strict_mode=True)
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    return {v.type.tensor_type.elem_type for v in values} | {
        t.data_type for t in model.graph.initializer
    }


@pytest.fixture(scope="module")
def fp32():
    return export_bytes(mobile(), example())


def test_fp32_is_unchanged(fp32):
    assert to_precision(fp32, "fp32") is fp32


def test_every_type_becomes_half_and_values_round(fp32):
    half = to_precision(fp32, "fp16")
    assert float_types(half) == {TensorProto.FLOAT16}
    x = example().numpy()
    expected = run(fp32, x)
    actual = run(half, x.astype(np.float16))
    assert actual.dtype == np.float16
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert 1e-6 < error <= 5e-3  # 11 bits through eleven convolutions; not bit-equal


def test_weights_are_rounded_to_nearest(fp32):
    weights = {t.name: t for t in onnx.load_from_string(fp32).graph.initializer}
    halves = {
        t.name: t for t in onnx.load_from_string(to_precision(fp32, "fp16")).graph.initializer
    }
    assert set(halves) == set(weights)
    for name, tensor in weights.items():
        expected = numpy_helper.to_array(tensor).astype(np.float16)
        np.testing.assert_array_equal(numpy_helper.to_array(halves[name]), expected)


def test_kept_io_is_single(fp32):
    half = to_precision(fp32, "fp16", keep_io=True)
    model = onnx.load_from_string(half)
    assert [n.op_type for n in model.graph.node].count("Cast") == 2
    x = example().numpy()
    actual = run(half, x)
    assert actual.dtype == np.float32
    expected = run(fp32, x)
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert 1e-6 < error <= 5e-3  # as above: rounded inside
    assert model.graph.input[0].name == "input"
    assert model.graph.output[0].name == "logits"


def test_open_bounds_of_clip_stay_open():
    largest = np.finfo(np.float32).max
    node = helper.make_node("Clip", ["x", "low", "high"], ["y"])
    half = to_precision(net([node], {"low": 0.5, "high": largest}), "fp16")
    x = np.linspace(-100, 60000, 32, dtype=np.float16).reshape(1, 2, 4, 4)
    np.testing.assert_array_equal(run(half, x), np.maximum(x, np.float16(0.5)))


@pytest.mark.parametrize("value", [7e4, -7e4, np.inf, np.nan])
@pytest.mark.parametrize("shape", [(), (1, 2, 1, 1)])
def test_constants_out_of_range_are_refused(value, shape):
    node = helper.make_node("Mul", ["x", "w"], ["y"])
    with pytest.raises(UnsupportedModelError, match=r"'w' reaches .* float16 ends at 65504"):
        to_precision(net([node], {"w": np.full(shape, value)}), "fp16")


@pytest.mark.parametrize("value", [65520.0, -65520.0, np.nan])
def test_one_weight_out_of_range_is_enough(value):
    """Not clipped to the largest half: a channel would compute something else, and nobody know."""
    weights = np.ones((2, 2, 1, 1))
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    to_precision(net([node], {"w": 65504 * weights}), "fp16")
    weights[1, 0] = value
    with pytest.raises(UnsupportedModelError, match="'w' reaches"):
        to_precision(net([node], {"w": weights}), "fp16")


def test_resize_keeps_its_scales_in_single():
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear")
    half = to_precision(net([node], {"scales": [1, 1, 2, 2]}, (1, 2, 8, 8)), "fp16")
    kinds = {t.name: t.data_type for t in onnx.load_from_string(half).graph.initializer}
    assert kinds == {"scales": TensorProto.FLOAT}
    assert run(half, np.ones((1, 2, 4, 4), np.float16)).shape == (1, 2, 8, 8)


def test_constant_nodes_and_casts_follow():
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node(
            "Constant", [], ["c"], value=numpy_helper.from_array(np.float32([0.5]), "value")
        ),
        helper.make_node("Add", ["f", "c"], ["y"]),
    ]
    half = to_precision(net(nodes, {}), "fp16")
    x = np.full((1, 2, 4, 4), 2.75, np.float16)
    np.testing.assert_array_equal(run(half, x), np.full_like(x, 2.5))


def test_int8_and_junk_are_refused(fp32):
    with pytest.raises(UsageError, match="trt-layermerge calibrate"):
        to_precision(fp32, "int8")
    with pytest.raises(CorruptInputError):
        to_precision(b"hello world", "fp16")
    with pytest.raises(CorruptInputError):
        to_precision(b"", "fp16")


def test_subgraphs_are_refused():
    inner = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["z"])],
        "inner",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=inner, else_branch=inner)
    constant = helper.make_node(
        "Constant", [], ["c"], value=numpy_helper.from_array(np.array(True), "value")
    )
    with pytest.raises(UnsupportedModelError, match="If 'choice'"):
        to_precision(net([constant, node], {}), "fp16")


def test_type_that_an_operator_implies_is_refused():
    """``ConstantOfShape`` without a value gives float32, which no attribute can halve."""
    nodes = [
        helper.make_node(
            "Constant", [], ["s"], value=numpy_helper.from_array(np.array([1, 2, 4, 4]), "value")
        ),
        helper.make_node("ConstantOfShape", ["s"], ["zeros"]),
        helper.make_node("Add", ["x", "zeros"], ["y"]),
    ]
    with pytest.raises(UnsupportedModelError, match=r"Add.*choose --precision fp32"):
        to_precision(net(nodes, {}), "fp16")


def quantised(scale, opset=19):
    """Returns a Q/DQ pair on the input and int8 weights behind a DQ of their own."""
    pair = ["scale", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *pair], ["q"]),
        helper.make_node("DequantizeLinear", ["q", *pair], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["v"], axis=0),
        helper.make_node("Conv", ["d", "v"], ["y"]),
    ]
    model = onnx.load_from_string(net(nodes, {"scale": scale, "w_scale": [0.5, 0.25]}))
    model.opset_import[0].version = opset
    model.ir_version = 9
    weights = np.int8([[3, -4], [127, -128]])[:, :, None, None]
    integers = {"zero": np.int8(0), "w_zero": np.zeros(2, np.int8), "w": weights}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in integers.items())
    return model.SerializeToString()


def test_quantised_models_keep_their_integers():
    half = to_precision(quantised(0.125), "fp16")
    tensors = {
        t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(half).graph.initializer
    }
    assert {n: t.dtype.name for n, t in tensors.items()} == {
        "scale": "float16",
        "w_scale": "float16",
        "zero": "int8",
        "w_zero": "int8",
        "w": "int8",
    }
    np.testing.assert_array_equal(tensors["w"].ravel(), [3, -4, 127, -128])
    x = np.float16(np.arange(-16, 16).reshape(1, 2, 4, 4) / 16)
    steps = np.clip(np.rint(x[0].astype(float) / 0.125), -128, 127) * 0.125
    expected = np.einsum("oi,ihw->ohw", [[1.5, -2.0], [31.75, -32.0]], steps)
    actual = run(half, x)
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual[0], expected, rtol=2**-10, atol=0)  # a rounding to half


def test_a_scale_that_vanishes_is_refused():
    to_precision(quantised(2.0**-24), "fp16")
    with pytest.raises(
        UnsupportedModelError, match=r"scale 'scale' is zero in float16.*keep_float"
    ):
        to_precision(quantised(2.0**-26), "fp16")
    with pytest.raises(UnsupportedModelError, match="'scale' reaches"):
        to_precision(quantised(1e6), "fp16")


def test_half_scales_need_opset_19():
    with pytest.raises(UnsupportedModelError, match="cannot be typed in float16"):
        to_precision(quantised(0.125, opset=17), "fp16")


X = np.full((1, 2, 4, 4), 20, np.float32)


def answer(model, x=X):
    """Returns what a model gives in real half precision: rounded after every operation."""
    return run(rounded(model), x)


def loud(first=3e3, second=1e-3):
    """Two 1x1 convolutions: 20 becomes 120,000, beyond half precision, and comes back as 240."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "loud"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "v"], ["c"], "quiet"),
        helper.make_node("Relu", ["c"], ["y"], "last"),
    ]
    shape = (2, 2, 1, 1)
    return net(nodes, {"w": np.full(shape, first), "v": np.full(shape, second)})


def test_half_precision_overflows_where_onnx_runtime_does_not():
    half = to_precision(loud(), "fp16", keep_io=True)
    assert np.isfinite(run(half, X)).all()  # the CPU computes in float
    assert np.isinf(answer(half)).all()
    typed = to_precision(loud(), "fp16")
    assert np.isinf(answer(typed, X.astype(np.float16))).all()


@pytest.mark.parametrize(("first", "second"), [(3e3, 1e-3), (1e-8, 1e8), (1e-6, 3.0)])
@pytest.mark.parametrize("keep_io", [True, False])
def test_what_half_precision_cannot_hold_stays_in_float(first, second, keep_io):
    told = beyond_half(loud(first, second), [X])
    kept = kept_in_float(onnx.load_from_string(told))
    assert kept == (("loud", "relu", "quiet", "last") if first == 1e-8 else kept)
    assert kept[:3] == ("loud", "relu", "quiet")
    half = to_precision(told, "fp16", keep_io=keep_io)
    found = answer(half, X if keep_io else X.astype(np.float16))
    np.testing.assert_allclose(found, run(loud(first, second), X), rtol=2**-10)
    if first == 3e3:
        # keep_io: in front of and behind "last"; else in front of "loud" and of "last"
        operators = [node.op_type for node in onnx.load_from_string(half).graph.node]
        assert operators.count("Cast") == 2


def test_a_network_within_half_precision_is_left_alone(fp32):
    assert beyond_half(fp32, [example().numpy()]) is fp32
    silent = loud(0.0)
    assert beyond_half(silent, [X]) == silent


def test_rounded_rounds_after_every_operation_by_hand():
    """2049 is no half: 2048 + 1 stays 2048, twice; in float it becomes 2050."""
    nodes = [
        helper.make_node("Add", ["x", "one"], ["a"]),
        helper.make_node("Add", ["a", "one"], ["y"]),
    ]
    half = to_precision(net(nodes, {"one": 1.0}), "fp16", keep_io=True)
    assert (answer(half, np.full_like(X, 2048)) == 2048).all()
    assert (answer(half, np.full_like(X, 2046)) == 2048).all()


def test_constants_that_are_shared_with_half_are_copied():
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["a"], "one"),
        helper.make_node("Mul", ["a", "w"], ["y"], "two"),
    ]
    told = onnx.load_from_string(net(nodes, {"w": 1 + 2.0**-12}))
    told.metadata_props.add(key=BEYOND_HALF, value="x")
    half = to_precision(told.SerializeToString(), "fp16", keep_io=True)
    kinds = {t.name: t.data_type for t in onnx.load_from_string(half).graph.initializer}
    assert kinds == {"w": TensorProto.FLOAT16, "w_fp32": TensorProto.FLOAT}


@pytest.mark.parametrize("sign", [1, -1])
def test_an_eps_does_not_vanish(sign):
    """Dead features: 0 / 0 is not a number, 0 / eps is zero."""
    nodes = [
        helper.make_node("Add", ["x", "eps"], ["n"]),
        helper.make_node("Div", ["x", "n"], ["y"]),
    ]
    half = to_precision(net(nodes, {"eps": sign * 1e-12}), "fp16", keep_io=True)
    eps = onnx.load_from_string(half).graph.initializer[0]
    assert numpy_helper.to_array(eps) == np.float16(sign * 2.0**-24)
    assert (answer(half, 0 * X) == 0).all()


def test_a_bound_of_clip_does_not_vanish():
    nodes = [
        helper.make_node("Clip", ["x", "eps"], ["n"]),
        helper.make_node("Div", ["x", "n"], ["y"]),
    ]
    half = to_precision(net(nodes, {"eps": 1e-12}), "fp16", keep_io=True)
    assert (answer(half, 0 * X) == 0).all()


def test_weights_may_vanish_but_not_all_of_them():
    weights = np.ones((2, 2, 1, 1))
    weights[1, 0] = 1e-9
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    half = onnx.load_from_string(to_precision(net([node], {"w": weights}), "fp16"))
    assert numpy_helper.to_array(half.graph.initializer[0]).ravel().tolist() == [1, 1, 0, 1]
    with pytest.raises(UnsupportedModelError, match="all of the weight 'w' is zero"):
        to_precision(net([node], {"w": 1e-9 * weights}), "fp16")


def test_generated_names_keep_clear_of_parameters():
    nodes = [
        helper.make_node("Mul", ["x", "x_fp16"], ["a"]),
        helper.make_node("Mul", ["a", "y_fp16"], ["y"]),
    ]
    half = to_precision(net(nodes, {"x_fp16": 2.0, "y_fp16": 3.0}), "fp16", keep_io=True)
    assert (answer(half) == 120).all()
