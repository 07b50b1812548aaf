"""Values of a traced network that depend on no input: numbers, and what is made of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from trt_layermerge.tracing.pieces import behind
from trt_layermerge.tracing.reading import Reading


@dataclass(frozen=True)
class Constant:
    """A value that is the same for every input.

    Attributes:
        value: In float64.
        dtype: The type in which the network has it.
        trained: Whether a parameter that training changes is in it.
        alone: Whether nothing else reads the tensors that it is made of.
    """

    value: Tensor
    dtype: torch.dtype
    trained: bool
    alone: bool


@torch.no_grad()
def constant_of(reading: Reading, value: Any) -> Constant | None:
    """Returns what a value is on every input, or None if it depends on one.

    Args:
        reading: The network.
        value: A number, or a node.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = torch.tensor(float(value), dtype=torch.float64)
        return Constant(number, torch.get_default_dtype(), False, True)
    if not isinstance(value, fx.Node):
        return None
    if not is_stored(value):
        return None
    stored = [reading.stored(node) for node in (value, *behind(value)) if node.op == "get_attr"]
    if not all(isinstance(tensor, Tensor) and tensor.is_floating_point() for tensor in stored):
        return None
    try:
        found = _evaluated(reading, value)
    except Exception:  # functions may refuse float64 in any way
        return None
    if not isinstance(found, Tensor) or not found.is_floating_point():
        return None
    trained = any(isinstance(t, nn.Parameter) and t.requires_grad for t in stored)
    return Constant(
        found.double(), stored[0].dtype, trained, not any(map(reading.read_again, stored))
    )


def is_stored(value: fx.Node) -> bool:
    """Whether a value is computed from tensors of the network alone."""
    return all(map(_is_fixed, (value, *behind(value))))


def _is_fixed(node: fx.Node) -> bool:
    """Whether a node reads a stored tensor, or computes something of such alone."""
    computed = node.op in ("call_function", "call_method") and node.all_input_nodes
    return node.op == "get_attr" or bool(computed)


def _evaluated(reading: Reading, node: fx.Node) -> Any:
    if node.op == "get_attr":
        return reading.stored(node).detach().double()
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: _evaluated(reading, n))
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
