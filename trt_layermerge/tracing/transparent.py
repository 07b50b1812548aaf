"""Operations that hand on their input untouched in eval mode."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn
from torch.nn import functional

from trt_layermerge.tracing.prepare import has_hooks

_MODULES = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
_MODULES_BY_NAME = {
    ("timm", "DropPath"),
    ("timm", "DropBlock2d"),
    ("torchvision", "StochasticDepth"),
    ("torchvision", "DropBlock2d"),
}
_METHODS = {"contiguous", "clone", "detach"}
_DROPOUTS = {functional.dropout, functional.dropout2d, functional.alpha_dropout}
_SCALINGS = {operator.mul, operator.truediv, torch.mul, torch.div}
ADDITIONS = {operator.add, operator.iadd, torch.add}
"""Functions that add two values."""


def is_transparent_module(module: nn.Module) -> bool:
    """Whether a module in eval mode returns its input."""
    kind = type(module)
    package = kind.__module__.partition(".")[0]
    known = kind in _MODULES or (package, kind.__name__) in _MODULES_BY_NAME
    return known and not has_hooks(module)


def transparent_input(node: fx.Node, module: nn.Module | None) -> fx.Node | None:
    """Returns the value that a node hands on untouched, or None if it computes something.

    Args:
        node: A node of a traced network.
        module: The module that it calls, or None.
    """
    source = node.args[0] if node.args else None
    if module is not None:
        known = is_transparent_module(module)
    elif node.op == "call_method":
        known = node.target in _METHODS
    elif node.target in _DROPOUTS:
        known = _switched_off(node)
    elif node.target is torch.clone:
        known = True
    elif node.target in ADDITIONS and len(node.args) == 2 and not node.kwargs:
        # sum([a, b]) and similar loops start with 0 + a.
        source = next((a for a in node.args if isinstance(a, fx.Node)), None)
        known = any(type(a) in (int, float) and a == 0 for a in node.args)
    elif node.target in _SCALINGS and len(node.args) == 2 and not node.kwargs:
        scale = node.args[1]  # a setting left at one
        known = isinstance(scale, int | float) and scale == 1
    else:
        known = False
    return source if known and isinstance(source, fx.Node) else None


def _switched_off(node: fx.Node) -> bool:
    """Whether a functional dropout was called with ``training=False``."""
    return (node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)) is False
