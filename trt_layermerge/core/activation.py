"""Names of the activations that may be removed, moved and timed.

A name is a kind, followed by its parameters where it has any: ``relu``, ``leaky_relu:0.01``,
``hardtanh:-1:1``. Everything outside this list is a barrier.
"""

from __future__ import annotations

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
