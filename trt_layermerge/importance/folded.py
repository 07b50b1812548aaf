"""The same network with fewer operations: batch normalisations folded into convolutions."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from trt_layermerge.blocks import ConvNorm


def folded(network: fx.GraphModule) -> fx.GraphModule:
    """Returns a copy of a network in eval mode that computes the same, up to rounding.

    A batch normalisation right behind a convolution that nothing else reads becomes an identity, so
    the names of all values stay; only the value of that convolution itself is another one.
    """
    copy = deepcopy(network)
    calls = Counter(str(node.target) for node in copy.graph.nodes if node.op == "call_module")
    for node in copy.graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        names = str(source.target), str(node.target)
        conv, norm = (copy.get_submodule(name) for name in names)
        if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
            continue
        if norm.running_mean is None or any(calls[name] > 1 for name in names):
            continue
        copy.set_submodule(names[0], fuse_conv_bn_eval(conv, norm))
        copy.set_submodule(names[1], nn.Identity())
    return copy


def folded_block(block: nn.Module) -> nn.Module:
    """Returns a copy of a block in eval mode that computes the same, up to rounding.

    The normalisation of each of its units is part of the unit's convolution.
    """
    copy = deepcopy(block)
    for unit in copy.modules():
        if isinstance(unit, ConvNorm) and unit.norm is not None:
            unit.conv, unit.norm = fuse_conv_bn_eval(unit.conv, unit.norm), None
    return copy
