"""Activations: from their canonical names to modules, and back from modules and calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from trt_layermerge.core.activation import activation_name, parse_activation

_MODULES: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "hardtanh": nn.Hardtanh,
}

_ATTRIBUTES: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.ReLU: ("relu", ()),
    nn.ReLU6: ("relu6", ()),
    nn.SiLU: ("silu", ()),
    nn.Hardswish: ("hardswish", ()),
    nn.Hardsigmoid: ("hardsigmoid", ()),
    nn.Sigmoid: ("sigmoid", ()),
    nn.Tanh: ("tanh", ()),
    nn.Mish: ("mish", ()),
    nn.ELU: ("elu", ("alpha",)),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.Hardtanh: ("hardtanh", ("min_val", "max_val")),
}
"""Kind of each class, and the attributes that hold its parameters."""

_TIMM = {
    "Swish": "silu",
    "SwishMe": "silu",
    "Mish": "mish",
    "MishMe": "mish",
    "HardSwish": "hardswish",
    "HardSwishMe": "hardswish",
    "HardSigmoid": "hardsigmoid",
    "HardSigmoidMe": "hardsigmoid",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "GELU": "gelu",
}
"""Activation classes of timm, told by name so that timm need not be installed."""

_CALLS: dict[Any, tuple[str, tuple[tuple[str, float | None], ...]]] = {
    functional.relu: ("relu", ()),
    torch.relu: ("relu", ()),
    "relu": ("relu", ()),
    functional.relu6: ("relu6", ()),
    functional.silu: ("silu", ()),
    functional.hardswish: ("hardswish", ()),
    functional.hardsigmoid: ("hardsigmoid", ()),
    functional.sigmoid: ("sigmoid", ()),
    torch.sigmoid: ("sigmoid", ()),
    "sigmoid": ("sigmoid", ()),
    functional.tanh: ("tanh", ()),
    torch.tanh: ("tanh", ()),
    "tanh": ("tanh", ()),
    functional.mish: ("mish", ()),
    functional.elu: ("elu", (("alpha", 1.0),)),
    functional.leaky_relu: ("leaky_relu", (("negative_slope", 0.01),)),
    functional.hardtanh: ("hardtanh", (("min_val", -1.0), ("max_val", 1.0))),
    torch.clamp: ("clamp", (("min", None), ("max", None))),
    torch.clip: ("clamp", (("min", None), ("max", None))),
    "clamp": ("clamp", (("min", None), ("max", None))),
    "clip": ("clamp", (("min", None), ("max", None))),
    torch.clamp_min: ("clamp", (("min", None),)),
    "clamp_min": ("clamp", (("min", None),)),
}
"""Kind of each function or method, and its parameters with their defaults, in order."""


def activation_module(name: str) -> nn.Module:
    """Returns a new module, not in place, for a canonical name. Raises ``ValueError``."""
    kind, parameters = parse_activation(name)
    return _MODULES[kind](*parameters)


def activation_of_module(module: nn.Module) -> str | None:
    """Returns the canonical name of what a module computes, or None if it is not supported."""
    kind = type(module)
    if kind is nn.GELU:
        return "gelu" if getattr(module, "approximate", "none") == "none" else None
    if kind in _ATTRIBUTES:
        base, attributes = _ATTRIBUTES[kind]
        return _name(base, [getattr(module, a) for a in attributes])
    if kind.__module__.startswith("timm."):
        return _TIMM.get(kind.__name__)
    return None


def activation_of_call(
    target: Callable[..., Any] | str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str | None:
    """Returns the canonical name of what a function or a tensor method computes, or None.

    Args:
        target: The function, or the name of the method.
        args: Positional arguments, the tensor first.
        kwargs: Keyword arguments.
    """
    if target is functional.gelu:
        return "gelu" if (*args[1:], kwargs.get("approximate", "none"))[0] == "none" else None
    if target not in _CALLS:
        return None
    kind, parameters = _CALLS[target]
    given = [
        args[i] if i < len(args) else kwargs.get(name, default)
        for i, (name, default) in enumerate(parameters, start=1)
    ]
    return _clamp_name(given) if kind == "clamp" else _name(kind, given)


def _clamp_name(bounds: Sequence[Any]) -> str | None:
    """Returns the name of ``clamp(min, max)``."""
    low, high = (*bounds, None)[:2]
    if high is None:
        return "relu" if _is_number(low) and low == 0 else None
    return _name("hardtanh", [low, high])


def _name(kind: str, parameters: Sequence[Any]) -> str | None:
    """Returns the canonical name; a hard tanh from 0 to 6 is ``relu6``."""
    if not all(_is_number(p) for p in parameters):
        return None
    if kind == "hardtanh" and tuple(parameters) == (0, 6):
        return "relu6"
    return activation_name(kind, *(float(p) for p in parameters))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
