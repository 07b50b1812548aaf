"""Changes to traced networks: blocks go in, what nobody uses goes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from trt_layermerge.blocks import RelaxedBlock
from trt_layermerge.blocks.algebra import fold_bn
from trt_layermerge.blocks.layers import detached, statistics
from trt_layermerge.core.candidate import Candidate, open_residual
from trt_layermerge.core.unit import Block
from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.tracing import TracedNetwork
from trt_layermerge.tracing.activations import activation_module
from trt_layermerge.tracing.conv import is_plain_conv
from trt_layermerge.tracing.forms import PassingConv2d
from trt_layermerge.tracing.prepare import same_values
from trt_layermerge.tracing.reading import is_norm
from trt_layermerge.tracing.transparent import is_transparent_module

HOME = "layermerge"


@dataclass(frozen=True, slots=True)
class Ports:
    """Names of the values of the traced graph between which a block stands.

    Attributes:
        source: The value that the block reads.
        target: The value that the block's output replaces.
        total: The value after the residual addition that ends with the block, if one does.
        out: The value after the activation at the block's end.
        features: A second value that the block reads, where it has one (``Bridge``).
    """

    source: str
    target: str
    total: str
    out: str
    features: str | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the values that the block is called with."""
        return (self.source,) if self.features is None else (self.source, self.features)


def block_ports(traced: TracedNetwork, candidate: Candidate) -> Ports:
    """Returns the values that a candidate's block reads and replaces.

    The block replaces the branch of a residual that stays and ends with it, and
    everything up to the last addition otherwise. Where nothing remains of a block and no residual
    stays open, its activation goes too. Where a branch is left out, its shortcut is handed on.
    """
    graph, block = traced.graph, candidate.block
    first, last = graph.units[block.start].nodes, graph.units[block.end - 1].nodes
    branch = graph.branch_at(block)
    if branch is not None:
        if candidate.convs or branch.shortcut is None:
            return Ports(branch.source, last.sum, last.sum, last.out)
        target = last.sum if candidate.activation else last.out
        return Ports(branch.shortcut, target, last.sum, last.out)
    source = node_named(traced.module, first.conv).all_input_nodes[0]
    if open_residual(graph, candidate) is not None:
        target = last.branch
    else:
        target = last.sum if candidate.convs else last.out
    bridge = graph.bridge_at(block)
    features = None if bridge is None else bridge.features
    return Ports(source.name, target, last.sum, last.out, features)


def block_key(block: Block) -> str:
    """Returns the name of a block's module, such as ``b3_5``."""
    return f"b{block.start}_{block.end}"


def block_path(block: Block) -> str:
    """Returns the qualified name of a block's module in a relaxed or merged network."""
    return f"{HOME}.{block_key(block)}"


def node_named(network: fx.GraphModule, name: str) -> fx.Node:
    """Returns a node by its name. Raises ``KeyError``."""
    nodes: dict[str, fx.Node] = {node.name: node for node in network.graph.nodes}
    return nodes[name]


def splice(traced: TracedNetwork, block: RelaxedBlock) -> None:
    """Puts a block in the place of its units, in place; the units stay until ``tidy``.

    What stood behind the block stays. The activation is added where the block ends with one and
    its last unit had none.
    """
    network, candidate = traced.module, block.candidate
    ports, path = block_ports(traced, candidate), block_path(candidate.block)
    target = node_named(network, ports.target)
    network.add_submodule(path, block)
    with network.graph.inserting_before(target):
        reads = tuple(node_named(network, name) for name in ports.reads)
        inserted = network.graph.call_module(path, reads)
    target.replace_all_uses_with(inserted)
    if candidate.activation is None or traced.graph.units[candidate.block.end - 1].activation:
        return
    total = inserted if ports.target == ports.total else node_named(network, ports.total)
    network.add_submodule(f"{path}_activation", activation_module(candidate.activation))
    with network.graph.inserting_after(total):
        activation = network.graph.call_module(f"{path}_activation", (total,))
    total.replace_all_uses_with(activation, delete_user_cb=lambda user: user is not activation)


def copy_changed_inputs(network: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Makes every operation that changes its input in place change a copy, in the graph.

    Tracing leaves such operations only inside modules that it cannot follow. Once what stands
    before one is removed it would change a value that others read. What read the value after it
    reads the copy.

    Args:
        network: The graph; it computes the same afterwards.
        inputs: What it is run on, to see what changes.

    Raises:
        UnsupportedModelError: If a changed value is read later in another shape or part.
    """
    watch = _Watch(network)
    with torch.no_grad():
        expected = watch.run(*(x.clone() for x in inputs))
        if not watch.changes:
            return
        order = {node: i for i, node in enumerate(network.graph.nodes)}
        for node, changed in watch.changes.items():
            for source in changed:
                now = next(n for n in node.all_input_nodes if watch.origin(n) is source)
                with network.graph.inserting_before(node):
                    duplicate = network.graph.call_method("clone", (now,))
                watch.copies[duplicate] = source
                for user in list(now.users):
                    if user is not duplicate and order.get(user, -1) >= order[node]:
                        user.replace_input_with(now, duplicate)
        network.recompile()
        if not same_values(network(*(x.clone() for x in inputs)), expected):
            names = ", ".join(node.name for node in watch.changes)
            raise UnsupportedModelError(
                f"{names} changes its input in place, and another view of that input is read "
                "later; let its forward return a new tensor instead"
            )


class _Watch(fx.Interpreter):
    """Runs a network and notes which operations change which of their inputs.

    Attributes:
        changes: The changed inputs of every operation that changes one, in order.
        copies: Of which value each copy is one.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network, garbage_collect_values=False)
        self.changes: dict[fx.Node, list[fx.Node]] = {}
        self.copies: dict[fx.Node, fx.Node] = {}

    def origin(self, node: fx.Node) -> fx.Node:
        """Returns the value of which a node is a copy, or itself."""
        return self.copies.get(node, node)

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node and compares how often its inputs were written to, before and after."""
        before = {i: v._version for i in n.all_input_nodes if isinstance(v := self.env[i], Tensor)}
        value = super().run_node(n)
        changed = [
            node
            for node, version in before.items()
            if self.env[node]._version != version and node.op != "get_attr"
        ]
        if changed:
            self.changes[n] = changed
        return value


def block_ends(traced: TracedNetwork) -> frozenset[str]:
    """Returns the names of all values that a block may read, or whose place it may take."""
    nodes = {node.name: node for node in traced.module.graph.nodes}
    units = [unit.nodes for unit in traced.graph.units]
    sources = {nodes[unit.nodes.conv].all_input_nodes[0].name for unit in traced.graph.conv_units}
    parts = (*traced.graph.branches, *traced.graph.wholes)
    sources |= {name for b in parts for name in (b.source, b.shortcut) if name is not None}
    sources |= {b.features for b in traced.graph.bridges if b.features is not None}
    for node in traced.module.graph.find_nodes(op="call_module"):  # fitted behind narrower streams
        name = str(node.target)
        if name in traced.graph.read_streams:
            layer = traced.module.get_submodule(name)
            sources |= {node.name} if type(layer) is nn.Linear else set()
    return frozenset(sources | {unit.branch for unit in units} | {unit.sum for unit in units})


def tapped(network: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """Returns what computes several values of a network, as a tuple; modules are shared with it."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in network.graph.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    by_name = {node.name: copied for node, copied in copies.items()}
    graph.output(tuple(by_name[name] for name in names))
    return _compiled(network, graph)


def between(network: fx.GraphModule, start: str, end: str) -> tuple[fx.GraphModule, list[str]]:
    """Returns what computes one value from another, and the names of all values that it reads.

    Args:
        network: Modules are shared with it.
        start: Name of the first node that is computed.
        end: Name of the last one, which depends on the first.
    """
    behind: set[fx.Node] = set()
    for node in network.graph.nodes:
        if node.name == start or not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
    wanted = [node_named(network, end)]
    for node in wanted:
        wanted += [n for n in node.all_input_nodes if n in behind and n not in wanted]
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    reads = [
        n for n in network.graph.nodes if n not in wanted and not set(n.users).isdisjoint(wanted)
    ]
    for node in reads:
        constant = node.op == "get_attr"
        copies[node] = graph.node_copy(node) if constant else graph.placeholder(node.name)
    for node in network.graph.nodes:
        if node in wanted:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(copies[wanted[0]])
    return _compiled(network, graph), [n.name for n in reads if n.op != "get_attr"]


def inputs_of(network: fx.GraphModule) -> tuple[str, ...]:
    """Returns the names of a network's inputs, in order."""
    return tuple(node.name for node in network.graph.find_nodes(op="placeholder"))


def outputs_of(network: fx.GraphModule) -> list[str]:
    """Returns the names of the values that a network puts out, in order, one as often as it is."""
    (output,) = network.graph.find_nodes(op="output")
    found: list[str] = []
    map_arg(output.args[0], lambda node: found.append(node.name))
    return found


def fold_batch_norms(network: fx.GraphModule) -> None:
    """Folds every batch normalisation into the convolution right before it, where it has one.

    Only what is exactly known: a subclass that does more, or one with a hook, stays. So does one
    behind a block, whose module computes what the relaxed block does, and nothing more.
    """
    for node in network.graph.find_nodes(op="call_module"):
        norm = network.get_submodule(str(node.target))
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        if source is None or not is_norm(norm):
            continue
        conv = _only_conv(network, source)
        if conv is None:
            continue
        weight, bias = fold_bn(conv.weight.detach(), detached(conv.bias), *statistics(norm))
        conv.weight = nn.Parameter(weight.to(conv.weight))
        conv.bias = nn.Parameter(bias.to(conv.weight))
        node.replace_all_uses_with(source)
        network.graph.erase_node(node)


def drop_transparent(network: fx.GraphModule) -> None:
    """Removes calls of identities, dropout and the like, which do nothing in eval mode."""
    for node in network.graph.find_nodes(op="call_module"):
        module = network.get_submodule(str(node.target))
        if is_transparent_module(module) or type(module) is PassingConv2d:
            node.replace_all_uses_with(node.all_input_nodes[0])
            network.graph.erase_node(node)


def tidy(network: fx.GraphModule) -> None:
    """Removes nodes, modules and tensors that nobody uses any more, and compiles the network."""
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    called = {str(n.target) for n in network.graph.find_nodes(op="call_module")}
    read = {str(n.target).rpartition(".")[0] for n in network.graph.find_nodes(op="get_attr")}
    for name, module in list(network.named_modules()):
        inside = any(f"{name}.".startswith(f"{c}.") for c in called)
        if name and not inside and name not in read and _has_tensors(module):
            replace_module(network, name, _hull(module))
    network.graph.lint()
    network.recompile()


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of the one with this qualified name.

    Args:
        network: Changed in place.
        name: Qualified name.
        module: What stands there then.
    """
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def _compiled(network: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    """Returns a network that computes a graph with another network's modules."""
    part = fx.GraphModule(network, graph)
    part.graph.eliminate_dead_code()
    part.recompile()
    return part


def _only_conv(network: fx.GraphModule, node: fx.Node) -> nn.Conv2d | None:
    """Returns the convolution that a node calls, if it runs once and is read once."""
    if node.op != "call_module" or len(node.users) != 1:
        return None
    if str(node.target).startswith(f"{HOME}."):
        return None
    conv = network.get_submodule(str(node.target))
    calls = network.graph.find_nodes(op="call_module", target=node.target)
    return conv if is_plain_conv(conv) and len(calls) == 1 else None


def _has_tensors(module: nn.Module) -> bool:
    """Whether a module itself, its children aside, holds parameters or buffers."""
    return any(True for _ in module.parameters(recurse=False)) or any(
        True for _ in module.buffers(recurse=False)
    )


def _hull(module: nn.Module) -> nn.Module:
    """Returns a module with the same children and nothing else."""
    hull = nn.Module()
    for name, child in module.named_children():
        hull.add_module(name, child)
    return hull.train(module.training)
