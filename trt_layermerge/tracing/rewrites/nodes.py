"""Small changes to a traced graph."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from trt_layermerge.tracing.reading import Reading


def type_of(network: nn.Module) -> Tensor:
    """Returns a tensor of the type and device that new tensors of a network get."""
    return next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))


def call_in_place(
    network: fx.GraphModule, node: fx.Node, module: nn.Module, source: fx.Node
) -> None:
    """Makes a node call a module; its name and its readers stay.

    It stands where the module did that the node called, or else beside the code that did, under the
    node's name.

    Args:
        network: Changed in place.
        node: What to change.
        module: What it calls from now on.
        source: What the module reads.
    """
    path = str(node.target) if _called_once(network, node) else _free(network, _home(node))
    network.add_submodule(path, module.eval())
    node.op, node.target, node.args, node.kwargs = "call_module", path, (source,), {}


def call_before(network: fx.GraphModule, node: fx.Node, module: nn.Module) -> fx.Node:
    """Returns a new call of a module, which stands between a node and the first value it reads."""
    source = node.all_input_nodes[0]
    path = _free(network, f"{node.target if node.op == 'call_module' else node.name}_alone")
    network.add_submodule(path, module.eval())
    with network.graph.inserting_before(node):
        inserted = network.graph.call_module(path, (source,))
    inserted.meta["shape"] = source.meta["shape"]
    node.replace_input_with(source, inserted)
    return inserted


def leave_out(node: fx.Node, source: fx.Node) -> None:
    """Removes a node; what read it reads another value."""
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def leads_to_convolution(
    reading: Reading, node: fx.Node, also: Callable[[fx.Node], bool] = lambda _: False
) -> bool:
    """Whether a convolution reads a value, or what normalisations and activations make of it.

    Args:
        reading: The network.
        node: The value.
        also: What else is seen through.
    """
    for user in reading.users(node):
        if user in reading.convs:
            return True
        through = user in reading.norms or user in reading.activations or also(user)
        if through and leads_to_convolution(reading, user, also):
            return True
    return False


def _called_once(network: fx.GraphModule, node: fx.Node) -> bool:
    calls = network.graph.find_nodes(op="call_module", target=node.target)
    return node.op == "call_module" and len(calls) == 1


def _home(node: fx.Node) -> str:
    """Returns the path of a node's name within the module whose code made it."""
    around = list(node.meta.get("nn_module_stack", {}).values())
    return f"{around[-1][0]}.{node.name}" if around and around[-1][0] else node.name


def _free(network: fx.GraphModule, path: str) -> str:
    """Returns a path at which a network has nothing yet."""
    while _has(network, path):
        path += "_"
    return path


def _has(network: nn.Module, path: str) -> bool:
    try:
        operator.attrgetter(path)(network)
    except AttributeError:
        return False
    return True
