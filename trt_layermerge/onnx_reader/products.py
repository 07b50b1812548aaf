"""Products and quotients of ONNX, and the activations that exporters write with them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx
from torch.nn import functional as F

from trt_layermerge.onnx_reader.converter import Converter, constant


def multiply(converter: Converter, node: Any) -> fx.Node:
    """Converts a product; some are activations with a name of their own."""
    value = _gelus_input(node)
    if value is not None:
        return converter.call(F.gelu, converter.value(value))
    for value, gate in _both_ways(node):
        function = _gated(value, gate)
        if function is not None:
            return converter.call(function, converter.value(value))
    return converter.call(operator.mul, *(converter.value(x) for x in node.inputs))


def divide(converter: Converter, node: Any) -> fx.Node:
    """Converts a quotient; ``x · clip(x + 3, 0, 6) / 6`` is hardswish."""
    for value, gate in _both_ways(_made(_over(node, 6.0), "Mul")):
        if _cut_off_line(gate) is value:
            return converter.call(F.hardswish, converter.value(value))
    return converter.call(operator.truediv, *(converter.value(x) for x in node.inputs))


def clip_bounds(node: Any) -> tuple[float | None, float | None]:
    """Returns minimum and maximum of a ``Clip``. Raises ``ValueError``."""
    low, high = constant(node, 1, "min"), constant(node, 2, "max")
    return None if low is None else float(low), None if high is None else float(high)


def hard_sigmoid_is_torchs(node: Any) -> bool:
    """Whether a ``HardSigmoid`` has the slope and the offset of torch's."""
    slope, offset = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
    return bool(abs(slope - 1 / 6) < 1e-6 and offset == 0.5)


def _gated(value: Any, gate: Any) -> Callable[..., Tensor] | None:
    """Returns the activation that is ``x · gate(x)``, if it is one."""
    made = _made(gate)
    if made is None:
        return None
    if made.op == "Tanh":
        inner = _made(made.inputs[0], "Softplus")
        return F.mish if inner is not None and inner.inputs[0] is value else None
    if made.op == "Div":
        return F.hardswish if _cut_off_line(_over(made, 6.0)) is value else None
    if made.inputs[0] is not value:
        return None
    if made.op == "HardSigmoid" and hard_sigmoid_is_torchs(made):
        return F.hardswish
    return F.silu if made.op == "Sigmoid" else None


def _gelus_input(node: Any) -> Any:
    """Returns x where a product is ``x · (1 + erf(x / √2)) · ½``, else None."""
    product = _made(_beside(node, 0.5), "Mul")
    for value, gate in _both_ways(product):
        erf = _made(_beside(_made(gate, "Add"), 1.0), "Erf")
        if erf is not None and _over(_made(erf.inputs[0]), 2**0.5) is value:
            return value
    return None


def _cut_off_line(tensor: Any) -> Any:
    """Returns x where a tensor is ``clip(x + 3, 0, 6)``, else None."""
    clip = _made(tensor, "Clip")
    if clip is None or clip_bounds(clip) != (0.0, 6.0):
        return None
    return _beside(_made(clip.inputs[0], "Add"), 3.0)


def _over(node: Any, number: float) -> Any:
    """Returns the input that a node divides by a certain number, else None."""
    if node is None or node.op != "Div" or _beside(node, number) is not node.inputs[0]:
        return None
    return node.inputs[0]


def _made(tensor: Any, op: str | None = None) -> Any:
    """Returns the node that computes a tensor, if it has this operator, else None."""
    node = tensor.inputs[0] if tensor is not None and tensor.inputs else None
    return node if node is not None and op in (None, node.op) else None


def _beside(node: Any, number: float) -> Any:
    """Returns the input of a node whose other input is a certain number, else None."""
    for tensor, other in _both_ways(node):
        values = getattr(other, "values", None)
        if values is not None and values.size == 1 and abs(float(values.item()) - number) < 1e-3:
            return tensor
    return None


def _both_ways(node: Any) -> tuple[tuple[Any, Any], ...]:
    """Returns the two inputs of a node in both orders; nothing of no node."""
    return () if node is None else (tuple(node.inputs), tuple(node.inputs)[::-1])
