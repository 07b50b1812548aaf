"""Spec graphs against torch: every activation, odd geometry, every precision."""

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

from trt_layermerge.backends import get_backend
from trt_layermerge.backends.tensorrt import build_engine
from trt_layermerge.backends.tensorrt_api import load_api
from trt_layermerge.core.activation import PARAMETERS, activation_name
from trt_layermerge.core.conv import AddSpec, ConvSpec, Spec
from trt_layermerge.errors import UsageError
from trt_layermerge.measure.spec_model import spec_model

PLAIN = ConvSpec(4, 6, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 9, 8)
SPECS = [
    PLAIN,
    ConvSpec(4, 6, (3, 5), (2, 1), (0, 3, 2, 1), (2, 1), 2, 11, 9, "relu", True),
    ConvSpec(6, 6, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 6, 7, 7, "relu6"),
    ConvSpec(5, 10, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 5, 4, 3, None, True),
    AddSpec(3, 5, 4, "relu"),
    AddSpec(3, 5, 4),
]
ARGUMENTS = {0: (), 1: (0.3,), 2: (-0.4, 1.25)}
ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "mish": F.mish,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "hardtanh": F.hardtanh,
}


def rounded(values: torch.Tensor, scale: float) -> torch.Tensor:
    """Returns the nearest multiples of a step that int8 reaches."""
    return (values / scale).round().clamp(-128, 127) * scale


def expected(spec: Spec, model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Computes a spec in float64 with torch, from the weights in its graph."""
    weights = {
        t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).astype(np.float64))
        for t in model.graph.initializer
    }
    int8 = "y.weight.int8" in weights or "y.end.scale" in weights

    def read(values: torch.Tensor, place: str) -> torch.Tensor:
        return rounded(values, float(weights[f"y.{place}.scale"])) if int8 else values

    x = torch.from_numpy(inputs["x"]).double()
    if isinstance(spec, ConvSpec):
        x, bias = read(x, "in"), weights["y.bias"]
        if int8:
            weight = weights["y.weight.int8"] * weights["y.weight.scale"].reshape(-1, 1, 1, 1)
        else:
            weight = weights["y.weight"]
        top, left, bottom, right = spec.padding
        x = F.conv2d(
            F.pad(x, (left, right, top, bottom)),
            weight,
            bias,
            spec.stride,
            dilation=spec.dilation,
            groups=spec.groups,
        )
    if "residual" in inputs:
        left = x if isinstance(spec, ConvSpec) else read(x, "left")
        x = left + read(torch.from_numpy(inputs["residual"]).double(), "right")
    if spec.activation is not None:
        kind, *parameters = spec.activation.split(":")
        x = ACTIVATIONS[kind](x, *map(float, parameters))
    return read(x, "end").numpy()


def computed(
    spec: Spec, precision: str, batch: int, fallback: str = "fp32"
) -> tuple[np.ndarray, np.ndarray]:
    """Runs the spec's graph in ONNX Runtime; returns its output and the expected one."""
    raw = spec_model(spec, precision, batch, fallback)
    model = onnx.load_model_from_string(raw)
    onnx.checker.check_model(model, full_check=True)
    int8 = precision == "int8"
    assert model.ir_version == (9 if int8 else 8)
    assert [o.version for o in model.opset_import] == [19 if int8 else 17]
    assert model.graph.name == str(spec)
    rng = np.random.default_rng(1)
    dtype = {"fp32": np.float32, "fp16": np.float16}[fallback if int8 else precision]
    with get_backend("onnxruntime").open(raw) as runner:
        assert all(shape[0] == batch for shape in runner.input_shapes.values())
        inputs = {n: rng.standard_normal(s).astype(dtype) for n, s in runner.input_shapes.items()}
        actual = runner.infer(inputs)["y"]
    assert actual.dtype == dtype
    return actual, expected(spec, model, inputs)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-5), ("fp16", 2e-2)])
def test_graph_computes_the_spec(spec: Spec, precision: str, tolerance: float) -> None:
    actual, wanted = computed(spec, precision, batch=2)
    assert actual.shape == wanted.shape
    assert np.abs(actual - wanted).max() < tolerance


STEP = 0.05
"""What int8 counts in at the output."""


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(("fallback", "tolerance"), [("fp32", 1e-5), ("fp16", 5e-3)])
def test_an_int8_graph_rounds_what_every_layer_reads(
    spec: Spec, fallback: str, tolerance: float
) -> None:
    """Values on the edge between two steps may fall to either: one step off, but very few."""
    actual, wanted = computed(spec, "int8", 2, fallback)
    assert actual.shape == wanted.shape
    off = np.abs(actual - wanted)
    assert off.max() < 1.01 * STEP + tolerance
    assert np.mean(off > tolerance) < {"fp32": 0.01, "fp16": 0.05}[fallback]


def test_rounding_that_is_left_out_is_noticed() -> None:
    """Negative control: the float network is more than half a step away at most values."""
    rounded_one, _ = computed(PLAIN, "int8", 2)
    _, exact = computed(PLAIN, "fp32", 2)
    assert np.mean(np.abs(rounded_one - exact) > 1e-5) > 0.9


def test_at_int8_nothing_but_biases_and_scales_is_left_in_float() -> None:
    model = onnx.load_model_from_string(spec_model(SPECS[1], "int8", 1, "fp16"))
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types.pop("y.weight.int8") == onnx.TensorProto.INT8
    whole = {name for name, kind in types.items() if kind == onnx.TensorProto.INT8}
    assert all(name.endswith("zero") for name in whole)
    halves = {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT16}
    assert all(name.endswith(("scale", "bias")) for name in halves)
    assert halves | whole == types.keys()
    order = [node.op_type.removesuffix("izeLinear") for node in model.graph.node]
    pair = ["Quant", "Dequant"]
    assert order == [*pair, "Dequant", "Conv", *pair, "Add", "Relu", *pair]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_tensorrt_rtx_builds_int8_with_an_fp16_remainder(spec: Spec) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    build = build_engine(spec_model(spec, "int8", 1, "fp16"), "int8", api=load_api("tensorrt_rtx"))
    assert build.plan and build.precision == "int8"


@pytest.mark.parametrize("kind", PARAMETERS)
def test_every_activation_is_the_one_of_torch(kind: str) -> None:
    spec = AddSpec(3, 5, 4, activation_name(kind, *ARGUMENTS[PARAMETERS[kind]]))
    actual, wanted = computed(spec, "fp32", batch=1)
    assert np.abs(actual - wanted).max() < 1e-5


def test_a_wrong_activation_is_noticed() -> None:
    """Negative control: the nearest relatives differ by far more than the tolerance."""
    gelu, _ = computed(AddSpec(3, 5, 4, "gelu"), "fp32", 1)
    _, silu = computed(AddSpec(3, 5, 4, "silu"), "fp32", 1)
    assert np.abs(gelu - silu).max() > 1e-2


def test_weights_are_seeded_distinct_and_never_denormal() -> None:
    spec = ConvSpec(512, 64, (7, 7), (1, 1), (3, 3, 3, 3), (1, 1), 1, 7, 7)
    first, second = spec_model(spec, "fp16", 1), spec_model(spec, "fp16", 1)
    assert first == second
    weight = onnx.numpy_helper.to_array(onnx.load_model_from_string(first).graph.initializer[0])
    assert np.abs(weight).min() > np.finfo(np.float16).tiny
    assert len(np.unique(weight.reshape(64, -1), axis=0)) == 64


def test_what_cannot_be_timed_is_refused() -> None:
    with pytest.raises(UsageError, match="must be fp32 or fp16, not int8"):
        spec_model(PLAIN, "int8", 1, "int8")
    with pytest.raises(UsageError, match="batch"):
        spec_model(PLAIN, "fp32", 0)
