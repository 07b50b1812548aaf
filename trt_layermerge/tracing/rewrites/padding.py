"""Zeros around a map become padding of the convolutions that read it.

A convolution with padding p of a map that was padded by q is that convolution with padding p + q,
side by side, since both are zeros. (Other values, reflection and cropping are no such padding.)
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.nn import functional

from trt_layermerge.core.conv import Pads
from trt_layermerge.tracing.forms import PaddedConv2d, pad_with
from trt_layermerge.tracing.prepare import has_hooks, runs_forward_of
from trt_layermerge.tracing.reading import Reading, shape_of

_ARGUMENTS = ("input", "pad", "mode", "value")


def fold_padding(reading: Reading) -> None:
    """Moves zeros into the convolutions that read them, in place; other readers keep them."""
    for node in reading.order:
        pads = _zeros(reading, node)
        if pads is None:
            continue
        for reader in list(node.users):
            conv = reading.module(reader)
            if isinstance(conv, nn.Conv2d) and _takes_padding(reading, reader):
                top, left, bottom, right = reading.convs[reader].padding
                pad_with(conv, (top + pads[0], left + pads[1], bottom + pads[2], right + pads[3]))
                reader.replace_input_with(node, node.all_input_nodes[0])
        if not node.users:
            node.graph.erase_node(node)


def _takes_padding(reading: Reading, node: fx.Node) -> bool:
    """Whether a node is a convolution whose padding is a number of zeros."""
    conv = reading.module(node)
    padded = type(conv) is PaddedConv2d
    plain = isinstance(conv, nn.Conv2d) and runs_forward_of(conv, nn.Conv2d.forward)
    return node in reading.convs and (plain or padded)


def _zeros(reading: Reading, node: fx.Node) -> Pads | None:
    """Returns the zeros that a node puts around a map, or None if it does anything else."""
    module = reading.module(node)
    if isinstance(module, nn.ZeroPad2d | nn.ConstantPad2d) and not has_hooks(module):
        given: dict[str, Any] = {"pad": module.padding, "value": module.value}
    elif node.op == "call_function" and node.target is functional.pad:
        given = dict(zip(_ARGUMENTS, node.args, strict=False)) | node.kwargs
    else:
        return None
    sides = given["pad"]
    if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0):
        return None
    if len(shape_of(node)) != 4 or not isinstance(sides, tuple | list) or len(sides) != 4:
        return None
    if not all(isinstance(side, int) and side >= 0 for side in sides):
        return None
    left, right, top, bottom = sides
    return top, left, bottom, right
