"""What every node of a traced network is: its shape, and which layer, activation or addition."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard

import torch
from torch import fx, nn

from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.tracing.activations import activation_of_call, activation_of_module
from trt_layermerge.tracing.conv import conv_refusal, conv_spec, is_conv
from trt_layermerge.tracing.norms import FrozenNorm
from trt_layermerge.tracing.prepare import Inputs, cause_of, has_hooks, runs_forward_of, shapes
from trt_layermerge.tracing.transparent import ADDITIONS, transparent_input

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """A traced network whose nodes carry the shape of their value in ``meta["shape"]``.

    Attributes:
        network: The traced network, free of in-place operations.
        opaque: Reason by qualified name, for modules that are recorded as one unknown call.
    """

    network: fx.GraphModule
    opaque: Mapping[str, str]

    @cached_property
    def order(self) -> dict[fx.Node, int]:
        """Position of every node in the order of execution."""
        return {node: i for i, node in enumerate(self.network.graph.nodes)}

    @cached_property
    def handed_on(self) -> frozenset[fx.Node]:
        """Every node that hands on its only input untouched."""
        found = (n for n in self.order if transparent_input(n, self.module(n)) is not None)
        return frozenset(found)

    @cached_property
    def convs(self) -> dict[fx.Node, ConvSpec]:
        """Geometry of every convolution that can be a unit or a projection."""
        return {
            node: conv_spec(module, shape_of(self.operand(node)))
            for node, module in self._modules()
            if isinstance(module, nn.Conv2d) and node not in self.refused
        }

    @cached_property
    def norms(self) -> frozenset[fx.Node]:
        """Every batch normalisation that is a fixed scale and shift per channel."""
        return frozenset(
            node for node, m in self._modules() if is_norm(m) and node not in self.refused
        )

    @cached_property
    def activations(self) -> dict[fx.Node, str]:
        """Canonical name of every supported activation."""
        found = ((node, self._activation(node)) for node in self.order)
        return {node: name for node, name in found if name is not None}

    @cached_property
    def additions(self) -> frozenset[fx.Node]:
        """Every plain sum of two values of one shape."""
        return frozenset(n for n in self.order if _is_addition(n) and n not in self.handed_on)

    @cached_property
    def refused(self) -> dict[fx.Node, str]:
        """Reason for every convolution, normalisation and module that cannot be understood."""
        found = ((node, self._refusal(node, module)) for node, module in self._modules())
        return {node: reason for node, reason in found if reason is not None}

    def module(self, node: fx.Node) -> nn.Module | None:
        """Returns the module that a node calls, or None."""
        return self.network.get_submodule(str(node.target)) if node.op == "call_module" else None

    def stored(self, node: fx.Node) -> Any:
        """Returns the tensor of the network that a node gets."""
        return operator.attrgetter(str(node.target))(self.network)

    def operand(self, node: fx.Node) -> fx.Node:
        """Returns the first value that a node reads, seen through transparent operations."""
        return self.value(node.all_input_nodes[0])

    def value(self, node: fx.Node) -> fx.Node:
        """Returns the node that computed a value, seen through transparent operations."""
        while node in self.handed_on:
            node = node.all_input_nodes[0]
        return node

    def users(self, value: fx.Node) -> tuple[fx.Node, ...]:
        """Returns what reads a value, seen through transparent operations, in order."""
        found: set[fx.Node] = set()
        for user in value.users:
            found.update(self.users(user) if user in self.handed_on else (user,))
        return tuple(sorted(found, key=self.order.__getitem__))

    def shared(self, module: nn.Module) -> str | None:
        """Returns why the tensors of a module cannot change, or None if they can."""
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if any(self.read_again(t) for t in own):
            return "it is used in more than one place, so its weights cannot change in one of them"
        return None

    def read_again(self, tensor: torch.Tensor) -> bool:
        """Whether a parameter or buffer is read in more than one place."""
        return self._reads[id(tensor)] > 1

    def _modules(self) -> Iterator[tuple[fx.Node, nn.Module]]:
        for node in self.order:
            module = self.module(node)
            if module is not None:
                yield node, module

    @cached_property
    def _reads(self) -> Counter[int]:
        """How many nodes read each parameter or buffer, by identity."""
        counter: Counter[int] = Counter()
        for node in self.order:
            module = self.module(node)
            if module is not None:
                counter.update({id(t) for t in (*module.parameters(), *module.buffers())})
            elif node.op == "get_attr":
                counter[id(self.stored(node))] += 1
        return counter

    def _refusal(self, node: fx.Node, module: nn.Module) -> str | None:
        name = str(node.target)
        if not node.all_input_nodes:
            return "it is called without a value of the network"
        if is_conv(module):
            shape = shape_of(self.operand(node))
            reason = conv_refusal(module, shape) or self.shared(module)
            if reason is None and isinstance(module, nn.Conv2d):
                reason = _surprise(conv_spec(module, shape), shape_of(node))
            return reason
        if name in self.opaque:
            return self.opaque[name]
        if is_norm(module):
            return self.shared(module)
        return None

    def _activation(self, node: fx.Node) -> str | None:
        module = self.module(node)
        if module is not None:
            return None if has_hooks(module) else activation_of_module(module)
        if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
            return None
        return activation_of_call(node.target, node.args, node.kwargs)


def is_norm(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether a module in eval mode is a fixed scale and shift per channel of a 2-d map."""
    plain = isinstance(module, nn.BatchNorm2d) and runs_forward_of(module, nn.BatchNorm2d.forward)
    return (
        (plain or type(module) in (nn.SyncBatchNorm, FrozenNorm))
        and isinstance(module.running_mean, torch.Tensor)
        and not has_hooks(module)
    )


def shape_of(node: fx.Node) -> Shape:
    """Returns the shape of a node's value in the traced run; empty if it is no tensor."""
    shape: Shape = node.meta.get("shape", ())
    return shape


def _is_addition(node: fx.Node) -> bool:
    known = node.op == "call_function" and node.target in ADDITIONS
    known = known or (node.op == "call_method" and node.target == "add")
    scale = {key: value for key, value in node.kwargs.items() if (key, value) != ("alpha", 1)}
    return (
        known
        and len(node.args) == 2
        and not scale
        and all(isinstance(a, fx.Node) and shape_of(a) == shape_of(node) for a in node.args)
        and len(shape_of(node)) == 4
    )


def _surprise(spec: ConvSpec, shape: Shape) -> str | None:
    expected = (spec.out_channels, *spec.out_size)
    if shape[1:] == expected:
        return None
    return f"its output has the shape {shape}, where {expected} was expected from its geometry"


class _ShapeRecorder(fx.Interpreter):
    """Runs a network node by node and notes the shape of every tensor."""

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node; its value's shape goes to ``meta["shape"]``."""
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            n.meta["shape"] = tuple(value.shape)
        return value


def record_shapes(network: fx.GraphModule, inputs: Inputs) -> None:
    """Writes ``meta["shape"]`` of every node whose value is a tensor.

    Raises:
        UnsupportedModelError: If the traced network fails where the model itself did not.
    """
    try:
        with torch.no_grad():
            _ShapeRecorder(network).run(*(x.clone() for x in inputs))
    except Exception as error:  # user code may fail in any way
        raise UnsupportedModelError(
            f"the traced copy fails on an input of shape {shapes(inputs)}: {cause_of(error)}; "
            "its forward takes decisions that tracing cannot see: move them into a submodule"
        ) from error
