"""Activations by name, as modules and as calls."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from trt_layermerge.core.activation import PARAMETERS
from trt_layermerge.tracing.activations import (
    activation_module,
    activation_of_call,
    activation_of_module,
)

SAMPLES = {"elu": (0.7,), "leaky_relu": (1 / 3,), "hardtanh": (-0.1, 2.5)}
X = torch.linspace(-8, 8, 101, dtype=torch.float64)

REFERENCE = {
    "relu": lambda x: max(x, 0.0),
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "hardswish": lambda x: x * min(max(x + 3, 0.0), 6.0) / 6,
    "hardsigmoid": lambda x: min(max(x + 3, 0.0), 6.0) / 6,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "elu": lambda x: x if x > 0 else 0.7 * math.expm1(x),
    "leaky_relu": lambda x: x if x > 0 else x / 3,
    "hardtanh": lambda x: min(max(x, -0.1), 2.5),
}


def name_of(kind: str) -> str:
    return ":".join([kind, *(repr(p) for p in SAMPLES.get(kind, ()))])


@pytest.mark.parametrize("kind", PARAMETERS)
def test_every_name_is_a_module_that_computes_it(kind: str) -> None:
    module = activation_module(name_of(kind))
    expected = torch.tensor([REFERENCE[kind](x) for x in X.tolist()], dtype=torch.float64)
    assert torch.allclose(module(X), expected, rtol=1e-12, atol=1e-15)
    assert activation_of_module(module) == name_of(kind)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="prelu"):
        activation_module("prelu")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Hardtanh(0, 6), "relu6"),
        (nn.ReLU(inplace=True), "relu"),
        (nn.Hardtanh(), "hardtanh:-1:1"),
        (nn.LeakyReLU(), "leaky_relu:0.01"),
        (nn.GELU("tanh"), None),
        (nn.PReLU(), None),
        (nn.Softplus(), None),
        (type("Mine", (nn.ReLU,), {})(), None),
    ],
)
def test_names_of_modules(module: nn.Module, name: str | None) -> None:
    assert activation_of_module(module) == name


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "name"),
    [
        (functional.relu, (X,), {}, "relu"),
        (torch.relu, (X,), {}, "relu"),
        ("relu", (X,), {}, "relu"),
        (functional.relu6, (X,), {"inplace": False}, "relu6"),
        (functional.leaky_relu, (X, 0.2), {}, "leaky_relu:0.2"),
        (functional.leaky_relu, (X,), {"negative_slope": 0.3}, "leaky_relu:0.3"),
        (functional.hardtanh, (X, 0), {"max_val": 6}, "relu6"),
        (functional.elu, (X,), {}, "elu:1"),
        (torch.sigmoid, (X,), {}, "sigmoid"),
        ("tanh", (X,), {}, "tanh"),
        (functional.gelu, (X,), {}, "gelu"),
        (functional.gelu, (X,), {"approximate": "tanh"}, None),
        ("clamp", (X, 0, 6), {}, "relu6"),
        ("clamp", (X,), {"min": 0}, "relu"),
        ("clamp", (X,), {"max": 6}, None),
        (torch.clamp, (X, -1, 2), {}, "hardtanh:-1:2"),
        (torch.clamp_min, (X, 0), {}, "relu"),
        (torch.clamp_min, (X, 1), {}, None),
        (functional.hardtanh, (X, X, 6), {}, None),
        (torch.exp, (X,), {}, None),
        ("exp", (X,), {}, None),
    ],
)
def test_names_of_calls(target: object, args: tuple, kwargs: dict, name: str | None) -> None:
    assert activation_of_call(target, args, kwargs) == name
    if name is not None:
        called = getattr(args[0], target) if isinstance(target, str) else target
        value = called(*(args[1:] if isinstance(target, str) else args), **kwargs)
        assert torch.equal(value, activation_module(name)(X))


def test_timm_classes() -> None:
    activations = pytest.importorskip("timm.layers.activations")
    memory = pytest.importorskip("timm.layers.activations_me")
    for room, kind in [
        (activations, "Swish"),
        (activations, "Mish"),
        (activations, "HardSwish"),
        (activations, "HardSigmoid"),
        (activations, "Sigmoid"),
        (activations, "Tanh"),
        (activations, "GELU"),
        (memory, "SwishMe"),
        (memory, "HardSwishMe"),
    ]:
        module = getattr(room, kind)()
        name = activation_of_module(module)
        assert name is not None, kind
        assert torch.allclose(activation_module(name)(X), module(X), rtol=1e-12, atol=1e-15)
    assert activation_of_module(activations.HardMish()) is None
    assert activation_of_module(activations.QuickGELU()) is None
