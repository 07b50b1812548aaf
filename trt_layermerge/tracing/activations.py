"""Activations: from their canonical names to modules, and back from modules and calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from trt_layermerge.core.activation import activation_name, parse_activation


@dataclass(frozen=True)
class Forms:
    """How torch spells an activation.

    Attributes:
        module: Its class.
        function: A function that computes it.
        others: Further functions, and names of methods of a tensor.
        parameters: Options of all of these that are parameters of the activation, in order, and
            their defaults.
        fixed: Further options, and the values that they must have; these are the defaults.
    """

    module: Callable[..., nn.Module]
    function: Callable[..., Any]
    others: tuple[Callable[..., Any] | str, ...] = ()
    parameters: tuple[tuple[str, float], ...] = ()
    fixed: tuple[tuple[str, Any], ...] = ()


FORMS: dict[str, Forms] = {
    "relu": Forms(nn.ReLU, functional.relu, (torch.relu, "relu")),
    "relu6": Forms(nn.ReLU6, functional.relu6),
    "silu": Forms(nn.SiLU, functional.silu),
    "hardswish": Forms(nn.Hardswish, functional.hardswish),
    "hardsigmoid": Forms(nn.Hardsigmoid, functional.hardsigmoid),
    "sigmoid": Forms(nn.Sigmoid, torch.sigmoid, (functional.sigmoid, "sigmoid")),
    "tanh": Forms(nn.Tanh, torch.tanh, (functional.tanh, "tanh")),
    "gelu": Forms(nn.GELU, functional.gelu, fixed=(("approximate", "none"),)),
    "mish": Forms(nn.Mish, functional.mish),
    "elu": Forms(nn.ELU, functional.elu, parameters=(("alpha", 1.0),)),
    "leaky_relu": Forms(
        nn.LeakyReLU, functional.leaky_relu, parameters=(("negative_slope", 0.01),)
    ),
    "hardtanh": Forms(
        nn.Hardtanh, functional.hardtanh, parameters=(("min_val", -1.0), ("max_val", 1.0))
    ),
}
"""Every activation of ``core.activation``."""

_KIND_OF_CLASS = {forms.module: kind for kind, forms in FORMS.items()}
_KIND_OF_CALL: dict[Any, str] = {
    call: kind for kind, forms in FORMS.items() for call in (forms.function, *forms.others)
}

_CLAMPS: dict[Any, tuple[str, ...]] = {
    torch.clamp: ("min", "max"),
    torch.clip: ("min", "max"),
    "clamp": ("min", "max"),
    "clip": ("min", "max"),
    torch.clamp_min: ("min",),
    "clamp_min": ("min",),
}
"""Bounds of each function or method that cuts off values, in order."""

_TIMM = {
    "Swish": "silu",
    "Mish": "mish",
    "HardSwish": "hardswish",
    "HardSigmoid": "hardsigmoid",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "GELU": "gelu",
}
"""Activation classes of timm, told by name so that timm need not be installed; without the "Me" of
those that save memory."""


def activation_module(name: str) -> nn.Module:
    """Returns a new module, not in place, for a canonical name. Raises ``ValueError``."""
    kind, parameters = parse_activation(name)
    return FORMS[kind].module(*parameters)


def activation_of_module(module: nn.Module) -> str | None:
    """Returns the canonical name of what a module computes, or None if it is not supported."""
    kind = _KIND_OF_CLASS.get(type(module))
    if kind is not None:
        return _name(kind, lambda _, name, default: getattr(module, name, default))
    if type(module).__module__.startswith("timm."):
        return _TIMM.get(type(module).__name__.removesuffix("Me"))
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

    def given(place: int, name: str, default: Any) -> Any:
        return args[place] if place < len(args) else kwargs.get(name, default)

    if target in _CLAMPS:
        return _clamp_name([given(i, name, None) for i, name in enumerate(_CLAMPS[target], 1)])
    return _name(_KIND_OF_CALL[target], given) if target in _KIND_OF_CALL else None


def _clamp_name(bounds: Sequence[Any]) -> str | None:
    """Returns the name of ``clamp(min, max)``."""
    low, high = (*bounds, None)[:2]
    if high is None:
        return "relu" if _is_number(low) and low == 0 else None
    return _canonical("hardtanh", [low, high])


def _name(kind: str, given: Callable[[int, str, Any], Any]) -> str | None:
    """Returns the canonical name, or None where an option is none that a name can tell.

    ``given`` returns an option by its place behind the tensor, its name and its default.
    """
    forms = FORMS[kind]
    if any(given(i, name, value) != value for i, (name, value) in enumerate(forms.fixed, 1)):
        return None
    return _canonical(kind, [given(i, *option) for i, option in enumerate(forms.parameters, 1)])


def _canonical(kind: str, parameters: Sequence[Any]) -> str | None:
    """Returns the canonical name; a hard tanh from 0 to 6 is ``relu6``."""
    if not all(_is_number(p) for p in parameters):
        return None
    if kind == "hardtanh" and tuple(parameters) == (0, 6):
        return "relu6"
    return activation_name(kind, *(float(p) for p in parameters))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
