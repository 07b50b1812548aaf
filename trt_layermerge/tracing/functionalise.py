"""A traced graph becomes pure: no operation changes its input, and nothing is left unused."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from trt_layermerge.tracing.transparent import transparent_input

_OPERATORS: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def functionalise(network: fx.GraphModule, inplace_modules: frozenset[str]) -> None:
    """Rewrites a graph in place: no operation changes its input, and later readers see the result.

    Args:
        network: A traced network with recorded shapes, whose modules already have ``inplace``
            switched off.
        inplace_modules: Qualified names of the modules that had it on.
    """
    order = {node: i for i, node in enumerate(network.graph.nodes)}
    for node in network.graph.nodes:
        if node.target in inplace_modules if node.op == "call_module" else _purify(node):
            _redirect(network, node, order)
    network.recompile()


def has_effect(node: fx.Node) -> bool:
    """Whether a node counts although nobody uses its value."""
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if node.op == "call_function":
        return getattr(node.target, "__name__", "") == "setitem"
    return node.op != "get_attr"


def remove_unused(network: fx.GraphModule, inputs: int) -> None:
    """Removes assertions, what only they use, and arguments beyond the first ``inputs``.

    Args:
        network: A network after ``functionalise``; it is changed in place.
        inputs: Number of example inputs; the other arguments keep their defaults.
    """
    graph = network.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and "_assert" in getattr(node.target, "__name__", ""):
            graph.erase_node(node)
    graph.eliminate_dead_code(has_effect)
    for node in graph.find_nodes(op="placeholder")[inputs:]:
        if not node.users:
            graph.erase_node(node)
    network.recompile()


def _redirect(network: fx.GraphModule, node: fx.Node, order: dict[fx.Node, int]) -> None:
    """Makes everything that reads the input of ``node`` afterwards read its output."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return
    pending = [_origin(network, node.args[0])]
    while pending:
        alias = pending.pop()
        for user in list(alias.users):
            if order[user] > order[node]:
                user.replace_input_with(alias, node)
            elif user is not node and _handed_on(network, user) is alias:
                pending.append(user)


def _origin(network: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Returns the value whose memory a node shares."""
    while (source := _handed_on(network, node)) is not None:
        node = source
    return node


def _handed_on(network: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Returns the input that a node returns as it is, in the same memory."""
    if node.op == "call_module":
        return transparent_input(node, network.get_submodule(str(node.target)))
    if node.op == "call_method" and node.target in ("contiguous", "detach"):
        return transparent_input(node, None)
    return None


def _purify(node: fx.Node) -> bool:
    """Makes a function or a method leave its input alone; returns whether it did not before."""
    if node.op == "call_method":
        return _purify_method(node)
    if node.op != "call_function" or not callable(node.target):
        return False
    if node.target in _OPERATORS:
        node.target = _OPERATORS[node.target]
        return "shape" in node.meta  # numbers do not change in place
    name = getattr(node.target, "__name__", "")
    pure = getattr(torch, name[:-1], None) if name.endswith("_") else None
    if callable(pure):
        node.target = pure
        return True
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # built-in functions show no signature, and have no such flag
        return False
    if bound.arguments.get("inplace") is not True:
        return False
    bound.arguments["inplace"] = False
    node.args, node.kwargs = bound.args, bound.kwargs
    return True


def _purify_method(node: fx.Node) -> bool:
    name = str(node.target)
    if not name.endswith("_") or name.startswith("_"):
        return False
    if callable(getattr(torch.Tensor, name[:-1], None)):
        node.target = name[:-1]
    return True
