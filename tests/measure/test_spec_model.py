"""Spec graphs against torch: every activation, odd geometry, both precisions."""

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

from trt_layermerge.backends import get_backend
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


def expected(spec: Spec, model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Computes a spec in float64 with torch, from the weights in its graph."""
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    x = torch.from_numpy(inputs["x"]).double()
    if isinstance(spec, ConvSpec):
        weight, bias = (
            torch.from_numpy(weights[f"y.{n}"].astype(np.float64)) for n in ("weight", "bias")
        )
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
        x = x + torch.from_numpy(inputs["residual"]).double()
    if spec.activation is not None:
        kind, *parameters = spec.activation.split(":")
        x = ACTIVATIONS[kind](x, *map(float, parameters))
    return x.numpy()


def computed(spec: Spec, precision: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Runs the spec's graph in ONNX Runtime; returns its output and the expected one."""
    raw = spec_model(spec, precision, batch)
    model = onnx.load_model_from_string(raw)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [o.version for o in model.opset_import] == [17]
    assert model.graph.name == str(spec)
    rng = np.random.default_rng(1)
    dtype = {"fp32": np.float32, "fp16": np.float16}[precision]
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
    with pytest.raises(UsageError, match="int8"):
        spec_model(PLAIN, "int8", 1)
    with pytest.raises(UsageError, match="batch"):
        spec_model(PLAIN, "fp32", 0)
