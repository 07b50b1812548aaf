"""Names of the activations that may be removed, moved and timed.

A name is a kind, followed by its parameters where it has any: ``relu``, ``leaky_relu:0.01``,
``hardtanh:-1:1``. Everything outside this list is a barrier. A new one needs a line here and one in
``tracing.activations``, and where ONNX has no operator for it, its nodes in ``measure.spec_model``.
A name tells everything of an activation and nothing of a network's weights, so PReLU, whose slopes
are learned and may differ by channel, is none of them.
"""

from __future__ import annotations

from dataclasses import dataclass

PARAMETERS: dict[str, int] = {
    "relu": 0,
    "relu6": 0,
    "silu": 0,
    "hardswish": 0,
    "hardsigmoid": 0,
    "sigmoid": 0,
    "tanh": 0,
    "gelu": 0,
    "mish": 0,
    "elu": 1,
    "leaky_relu": 1,
    "hardtanh": 2,
}
"""Number of parameters by kind: elu alpha, leaky_relu slope, hardtanh minimum and maximum."""


@dataclass(frozen=True)
class OnnxOperator:
    """The operator of ONNX that computes an activation.

    Attributes:
        name: Of the operator.
        fixed: Attributes and their values, which are not ONNX's defaults.
        parameters: Attributes that take the parameters of the activation, in order.
    """

    name: str
    fixed: tuple[tuple[str, float], ...] = ()
    parameters: tuple[str, ...] = ()


ONNX_OPERATORS: dict[str, OnnxOperator] = {
    "relu": OnnxOperator("Relu"),
    "sigmoid": OnnxOperator("Sigmoid"),
    "tanh": OnnxOperator("Tanh"),
    "hardswish": OnnxOperator("HardSwish"),
    "hardsigmoid": OnnxOperator("HardSigmoid", fixed=(("alpha", 1 / 6), ("beta", 0.5))),
    "elu": OnnxOperator("Elu", parameters=("alpha",)),
    "leaky_relu": OnnxOperator("LeakyRelu", parameters=("alpha",)),
}
"""Activations that are one operator at opset 17; the others are several nodes."""


def activation_name(kind: str, *parameters: float) -> str:
    """Returns the canonical name, such as ``leaky_relu:0.01``, exactly. Raises ``ValueError``."""
    if PARAMETERS.get(kind) != len(parameters):
        raise ValueError(f"unknown activation {kind!r} with {len(parameters)} parameters")
    return ":".join([kind, *(repr(float(p)).removesuffix(".0") for p in parameters)])


def parse_activation(name: str) -> tuple[str, tuple[float, ...]]:
    """Returns kind and parameters of a canonical name. Raises ``ValueError``."""
    kind, *parameters = name.split(":")
    if PARAMETERS.get(kind) != len(parameters):
        raise ValueError(f"unknown activation {name!r}")
    return kind, tuple(float(p) for p in parameters)
