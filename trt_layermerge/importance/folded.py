"""Copies whose normalisations are part of their convolutions: the same values, less to run."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from trt_layermerge.blocks import ConvNorm
from trt_layermerge.tracing.conv import is_plain_conv
from trt_layermerge.tracing.reading import is_norm


def folded(network: fx.GraphModule) -> fx.GraphModule:
    """Returns a copy of a network in eval mode that computes the same, up to rounding.

    A batch normalisation right behind a convolution that nothing else reads becomes an identity, so
    the names of all values stay; only the value of that convolution itself is another one.
    """
    found = deepcopy(network)
    calls = Counter(str(node.target) for node in found.graph.nodes if node.op == "call_module")
    for node in found.graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        names = str(source.target), str(node.target)
        conv, norm = (found.get_submodule(name) for name in names)
        if not (is_plain_conv(conv) and is_norm(norm)) or any(calls[name] > 1 for name in names):
            continue
        found.set_submodule(names[0], fuse_conv_bn_eval(conv, norm))
        # What else lies below the norm's name, as its activation in timm's networks, stays there.
        identity = nn.Identity()
        for name, child in norm.named_children():
            identity.add_module(name, child)
        found.set_submodule(names[1], identity)
    return found


def folded_block(block: nn.Module) -> nn.Module:
    """Returns a copy of a block in eval mode that computes the same, up to rounding.

    The normalisation of each of its units is part of the unit's convolution.
    """
    found = deepcopy(block)
    for unit in found.modules():
        if isinstance(unit, ConvNorm) and unit.norm is not None:
            unit.conv, unit.norm = fuse_conv_bn_eval(unit.conv, unit.norm), None
    return found
