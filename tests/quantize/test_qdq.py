"""Q/DQ models: every scale by hand, whole outputs against numpy, and what is left alone."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from tests.quantize.graphs import (
    RESIDUAL_RANGES,
    constants,
    images,
    network,
    nodes,
    residual,
    rounded,
    run,
)
from trt_layermerge.errors import CorruptInputError, UnsupportedModelError, UsageError
from trt_layermerge.finetune.qat import round_weight
from trt_layermerge.quantize.qdq import (
    activations,
    check_names,
    quantizable,
    quantize_model,
    scale_of,
    weight_scales,
)
from trt_layermerge.quantize.sensitivity import sensitivities


def test_a_pointwise_convolution_by_hand():
    """Scales are powers of two, so every number here is exact."""
    weight = np.array([[127 / 64, -0.5], [127 / 1024, 0.03]])[:, :, None, None]
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv")
    model = network([node], (1, 2, 2, 2), {"w": weight, "b": [0.3, -0.7]})
    quantised = quantize_model(model, {"x": 127 / 32})
    assert constants(quantised)["x_scale"] == 1 / 32
    np.testing.assert_array_equal(constants(quantised)["w_scale"], [1 / 64, 1 / 1024])
    x = np.float32([[[[1.0, -3.97], [5.0, -5.0]], [[0.01, 0.02], [0.0156, -0.047]]]])
    steps = np.array([[[32, -127], [127, -128]], [[0, 1], [0, -2]]])  # 5 and -5 saturate
    weights = np.array([[127 / 64, -32 / 64], [127 / 1024, 31 / 1024]])
    expected = np.einsum("oi,ihw->ohw", weights, steps / 32) + np.array([[[0.3]], [[-0.7]]])
    np.testing.assert_allclose(run(quantised, x)[0][0], expected, rtol=0, atol=1e-6)


def test_scales_are_the_nearest_half():
    for magnitude in (0.3, 1.0, 6.0, 77.7, 1234.5):
        scale = scale_of(magnitude)
        assert scale == np.float16(scale)
        assert abs(scale - magnitude / 127) <= 2**-11 * magnitude / 127
    assert scale_of(0.0) == 1.0
    assert scale_of(1e-30) == 2**-24 > 0
    assert scale_of(1e9) == 1e9 / 127  # no half holds it; typing it as one is refused


def test_scales_below_the_normal_range_cover_what_was_seen():
    """The nearest half of 1.4 steps is 1 step, which would clip 29 %."""
    step = 2.0**-24
    assert scale_of(127 * 1.4 * step) == 2 * step
    assert scale_of(127 * 3 * step) == 3 * step
    assert scale_of(127 * 1023.5 * step) == 2.0**-14
    magnitudes = np.geomspace(1e-9, 2e-3, 301)
    scales = np.array([scale_of(float(m)) for m in magnitudes])
    assert np.all(127 * scales >= magnitudes * (1 - 2.0**-11))
    assert np.all(scales <= np.maximum(step, magnitudes / 127 * (1 + 2.0**-11) + step))
    assert np.array_equal(scales, scales.astype(np.float16))
    weight = torch.tensor(magnitudes, dtype=torch.float32)[:, None]
    trained = round_weight(weight).abs().flatten()
    held = weight_scales(weight.numpy(), 0)
    expected = np.clip(np.rint(weight.numpy()[:, 0] / held), -128, 127) * held
    np.testing.assert_allclose(trained.numpy(), expected, rtol=1e-6)


def test_dead_channels_get_a_scale():
    weight = np.zeros((3, 2, 1, 1), np.float32)
    weight[1] = 1e-12
    np.testing.assert_array_equal(weight_scales(weight, 0), np.float32([1, 2**-24, 1]))


def test_what_is_quantised_and_where():
    model = residual()
    assert quantizable(model) == ("first", "depth", "sum", "head")
    assert activations(model) == ("start", "r1", "f")
    quantised = nodes(quantize_model(model, RESIDUAL_RANGES))
    assert list(quantised["first"].input) == ["start_dequantized", "w1_dequantized", "b1"]
    assert list(quantised["depth"].input) == ["r1_dequantized", "w2_dequantized"]
    # The convolution before the addition is not rounded, so that TensorRT can fuse the two.
    assert list(quantised["sum"].input) == ["c2", "start_dequantized"]
    assert list(quantised["head"].input) == ["f_dequantized", "w3_dequantized", "b3"]
    assert list(quantised["pool"].input) == ["s"]
    assert [n.op_type for n in quantised.values()].count("QuantizeLinear") == 6


def test_the_whole_output_equals_numpy():
    """Depthwise, addition and ``Gemm`` included: a float network on rounded numbers."""
    model = residual()
    quantised = quantize_model(model, RESIDUAL_RANGES)
    x, found = images(3), {}
    names = ["start", "c1", "r1", "c2", "s", "f", "y"]
    for name, value in zip(names, run(quantised, x, names), strict=True):
        found[name] = value
    w = {k: rounded(v, _per_channel(v)) for k, v in constants(model).items() if k[0] == "w"}
    bias = constants(model)
    start = rounded(np.maximum(x, 0), scale_of(4.0))
    first = _conv(start, w["w1"], 1) + bias["b1"][None, :, None, None]
    depth = _conv(rounded(np.maximum(found["c1"], 0), scale_of(18.0)), w["w2"], 4)
    mean = (found["c2"] + start).mean(axis=(2, 3))
    head = rounded(found["f"], scale_of(12.0)) @ w["w3"].T + bias["b3"]
    # float32 sums of at most 36 terms; each layer starts from the values found before it.
    for name, expected in {"c1": first, "c2": depth, "f": mean, "y": head}.items():
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=2e-5, err_msg=name)


def _per_channel(weight):
    flat = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    scales = (flat.astype(np.float64) / 127).astype(np.float16).astype(np.float64)
    return scales.reshape(-1, *[1] * (weight.ndim - 1))


def _conv(x, w, groups):
    """Returns a 3x3 convolution with padding 1, summed in float64."""
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    per_group = w.shape[1]
    y = np.zeros((len(x), len(w), *x.shape[2:]))
    for o in range(len(w)):
        first = o // (len(w) // groups) * per_group
        for i in range(per_group):
            for dy in range(3):
                for dx in range(3):
                    part = padded[:, first + i, dy : dy + x.shape[2], dx : dx + x.shape[3]]
                    y[:, o] += w[o, i, dy, dx] * part
    return y


def test_a_transposed_gemm_has_its_channels_on_axis_1():
    weight = np.array([[1.0, 10.0, 100.0], [0.5, -20.0, 30.0]])
    node = helper.make_node("Gemm", ["x", "w"], ["y"], "fc")
    quantised = quantize_model(network([node], (1, 2), {"w": weight}), {"x": 1.0})
    expected = np.float16([1 / 127, 20 / 127, 100 / 127])
    np.testing.assert_array_equal(constants(quantised)["w_scale"], expected.astype(np.float32))
    axes = [a.i for a in nodes(quantised)["w_QuantizeLinear"].attribute if a.name == "axis"]
    assert axes == [1]


def test_additions_of_two_branches():
    """Only a convolution's own output may skip its pair, one for each addition."""
    conv = [helper.make_node("Conv", ["x", f"w{i}"], [f"c{i}"], f"conv{i}") for i in (1, 2)]
    weights = {f"w{i}": np.ones((1, 1, 1, 1)) for i in (1, 2)}
    both = [*conv, helper.make_node("Add", ["c1", "c2"], ["y"], "sum")]
    assert activations(network(both, (1, 1, 2, 2), weights)) == ("x", "c2")
    relu = helper.make_node("Relu", ["c1"], ["r1"])
    behind = [conv[0], relu, helper.make_node("Add", ["r1", "x"], ["y"], "sum")]
    model = network(behind, (1, 1, 2, 2), {"w1": weights["w1"]})
    assert activations(model) == ("x", "r1")
    twice = [conv[0], helper.make_node("Add", ["c1", "c1"], ["y"], "sum")]
    assert activations(network(twice, (1, 1, 2, 2), {"w1": weights["w1"]})) == ("x", "c1")


def test_what_is_no_residual_addition_stays_float():
    conv = helper.make_node("Conv", ["x", "w"], ["c"], "conv")
    plus = helper.make_node("Add", ["c", "one"], ["d"], "plus")
    pool = helper.make_node("GlobalAveragePool", ["d"], ["p"], "pool")
    gate = helper.make_node("Add", ["d", "p"], ["y"], "broadcast")
    model = network(
        [conv, plus, pool, gate],
        (1, 1, 2, 2),
        {"w": np.ones((1, 1, 1, 1)), "one": np.ones((1, 1, 2, 2))},
    )
    assert quantizable(model) == ("conv",)


def test_weights_that_are_computed_stay_float():
    split = helper.make_node("Neg", ["w"], ["v"], "neg")
    conv = helper.make_node("Conv", ["x", "v"], ["y"], "conv")
    assert quantizable(network([split, conv], (1, 1, 2, 2), {"w": np.ones((1, 1, 1, 1))})) == ()


def test_names_that_repeat_are_replaced_by_those_of_the_outputs():
    conv = [
        helper.make_node("Conv", [source, "w"], [target], name)
        for source, target, name in (("x", "a", "same"), ("a", "b", "same"), ("b", "y", ""))
    ]
    model = network(conv, (1, 1, 2, 2), {"w": np.ones((1, 1, 1, 1))})
    assert quantizable(model) == ("a", "b", "y")
    quantised = onnx.load_from_string(quantize_model(model, dict.fromkeys("xab", 1.0)))
    kinds = [n.op_type for n in quantised.graph.node]
    assert kinds.count("QuantizeLinear") == 4  # three activations, one weight that all share


@pytest.mark.parametrize("kept", ["first", "depth", "sum", "head"])
def test_a_node_kept_in_float_is_untouched(kept):
    model = residual()
    quantised = quantize_model(model, RESIDUAL_RANGES, [kept])
    before, after = nodes(model)[kept], nodes(quantised)[kept]
    assert list(after.input) == list(before.input)
    assert after.attribute == before.attribute
    others = {"first", "depth", "sum", "head"} - {kept}
    assert all("dequantized" in " ".join(nodes(quantised)[name].input) for name in others)
    for name, value in constants(model).items():
        np.testing.assert_array_equal(constants(quantised)[name], value)


def test_all_kept_in_float_is_the_float_network():
    model = residual()
    quantised = quantize_model(model, {}, quantizable(model))
    x = images(2)
    np.testing.assert_array_equal(run(quantised, x)[0], run(model, x)[0])


def test_always_the_same_bytes_at_opset_19():
    model = residual()
    first = quantize_model(model, RESIDUAL_RANGES, {"sum", "head"})
    again = quantize_model(model, dict(reversed(RESIDUAL_RANGES.items())), ["head", "sum"])
    assert first == again
    proto = onnx.load_from_string(first)
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 19)]
    assert proto.ir_version == 9


def test_a_wrong_scale_is_seen():
    """The negative control: a range 16 times too small saturates nearly everything."""
    model, x = residual(), images(16)
    reference = run(model, x)[0]

    def error(ranges):
        return np.abs(run(quantize_model(model, ranges), x)[0] - reference).max()

    assert error(RESIDUAL_RANGES) < 0.05 * np.abs(reference).max()
    assert error({**RESIDUAL_RANGES, "r1": 18 / 16}) > 0.3 * np.abs(reference).max()


def test_unknown_names_are_refused_with_what_is_near():
    known = [f"/blocks/{i}/conv1/Conv" for i in range(30)]
    check_names(known[:3], known)
    with pytest.raises(UsageError, match=r"none of the 30 nodes.*near it is /blocks/7/conv1/Conv"):
        check_names(["/blocks/7/conv1/conv"], known)
    with pytest.raises(UsageError, match=r"they are like /blocks/0/conv1/Conv") as caught:
        check_names(["classifier"], known)
    assert len(str(caught.value)) < 400


def test_ranges_that_do_not_fit_are_refused():
    model = residual()
    with pytest.raises(CorruptInputError, match=r"no range of 'r1'.*another network"):
        quantize_model(model, {"start": 4.0, "f": 12.0})
    for bad in (np.nan, np.inf, -1.0):
        with pytest.raises(CorruptInputError, match="range of 'f' is"):
            quantize_model(model, {**RESIDUAL_RANGES, "f": bad})
    with pytest.raises(UsageError, match=r"\['secnd'\], and none of the 4 nodes"):
        quantize_model(model, RESIDUAL_RANGES, ["secnd"])


def test_junk_and_quantised_models_are_refused():
    for junk in (b"", b"hello world"):
        with pytest.raises(CorruptInputError):
            quantizable(junk)
    with pytest.raises(UnsupportedModelError, match="quantised already"):
        quantize_model(quantize_model(residual(), RESIDUAL_RANGES), RESIDUAL_RANGES)


def test_generated_names_keep_clear_of_parameters():
    """A weight that is called as the scale of the input."""
    node = helper.make_node("Conv", ["x", "x_scale", "x_zero_point"], ["y"], "conv")
    constants = {"x_scale": np.full((1, 1, 1, 1), 63.5), "x_zero_point": np.float32([0])}
    model = network([node], (1, 1, 2, 2), constants)
    x = np.float32([[[[1, 2], [3, 4]]]])
    (found,) = run(quantize_model(model, {"x": 127.0}), x)
    np.testing.assert_array_equal(found, 63.5 * x)
    (error,) = sensitivities(model, {"x": 127.0}, x)
    assert error.sqnr_db == np.inf
