"""What a node of a traced network is, in words for the user."""

from __future__ import annotations

from torch import fx

from trt_layermerge.tracing.norms import image_norm
from trt_layermerge.tracing.reading import Reading, is_norm, shape_of
from trt_layermerge.tracing.rewrites.constants import is_stored

_PHRASES = {
    "cat": "a concatenation",
    "concat": "a concatenation",
    "stack": "a concatenation",
    "truediv": "a division",
    "sub": "a subtraction",
    "add": "an addition that is no plain sum of two maps of one shape",
    "mean": "averaging over positions",
    "interpolate": "resizing",
    "upsample": "resizing",
    "pixelshuffle": "resizing",
    "flatten": "reshaping",
    "view": "reshaping",
    "reshape": "reshaping",
    "permute": "reordering of axes",
    "transpose": "reordering of axes",
    "chunk": "slicing",
    "split": "slicing",
    "getitem": "slicing",
    "getattr": "code that reads its shape",
    "size": "code that reads its shape",
    "matmul": "attention or another matrix product",
    "softmax": "attention or another softmax",
    "linear": "a fully connected layer",
    "output": "the output of the network",
}
"""What a function, method or layer is, by the beginning of its name in lower case."""

_PADDINGS = {
    "reflect": "padding by reflection",
    "replic": "padding by repetition",
    "circular": "padding around",
}
"""What pads, by a part of its name or of its mode."""


def phrase(reading: Reading, node: fx.Node) -> str:
    """Returns what a node is, with its name."""
    module = reading.module(node)
    if node in reading.additions:
        return f"the addition {node.name}"
    if node in reading.convs or node in reading.refused:
        return f"the layer {node.target}"
    if module is not None and is_norm(module):
        return f"a batch normalisation ({node.target}) that cannot be folded into it"
    if node in reading.activations:
        return f"a further activation ({node.name})"
    name = type(module).__name__ if module is not None else _name(node)
    lowered = name.lower().replace("_", "")
    arithmetic = _arithmetic(reading, node, lowered) if module is None else None
    if arithmetic is not None:
        return f"{arithmetic} ({node.name})"
    if "pool" in lowered:
        return f"pooling ({node.name})"
    if "pad" in lowered:
        return f"{_padding(node, lowered)} ({node.name})"
    if (norm := image_norm(name)) is not None:
        return f"{norm} ({node.name})"
    known = next((text for key, text in _PHRASES.items() if lowered.startswith(key)), None)
    return f"{known} ({node.name})" if known else f"{name} ({node.name})"


def _arithmetic(reading: Reading, node: fx.Node, name: str) -> str | None:
    """Returns what an addition or a multiplication does, by its operands; None for others."""
    name = name.removeprefix("i")
    if not name.startswith(("mul", "add")):
        return None
    done = "a multiplication" if name.startswith("mul") else "an addition"
    values = [reading.value(n) for n in node.all_input_nodes if not is_stored(n)]
    if len(values) == 1 and len(node.all_input_nodes) > 1:
        return f"{done} with a learned or stored value, as in layer scale"
    if len(node.all_input_nodes) == 1:
        return f"{done} with a number"
    if name.startswith("add"):
        return None
    if any(shape_of(value)[2:] == (1, 1) != shape_of(node)[2:] for value in values):
        return f"{done} with one value per channel, as in squeeze-and-excitation"
    return f"{done} of two maps"


def _padding(node: fx.Node, name: str) -> str:
    """Returns with what a node pads, by the name of what it calls and its mode."""
    told = f"{name} {node.args[2:3]} {node.kwargs.get('mode')}"
    known = (text for key, text in _PADDINGS.items() if key in told)
    return next(known, "padding outside a convolution")


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
