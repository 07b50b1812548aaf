"""Changes to traced networks: blocks go in, what nobody uses goes out."""

from __future__ import annotations

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trt_layermerge.core.unit import Block
from trt_layermerge.merge.algebra import fold_bn
from trt_layermerge.merge.block import RelaxedBlock, block_key, block_ports
from trt_layermerge.merge.layers import detached, statistics
from trt_layermerge.trace import TracedNetwork
from trt_layermerge.trace.activations import activation_module
from trt_layermerge.trace.conv import conv_refusal
from trt_layermerge.trace.transparent import is_transparent_module

HOME = "layermerge"
ANY_MAP = (1, 1, 1, 1)


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
    source, target = node_named(network, ports.source), node_named(network, ports.target)
    network.add_submodule(path, block)
    with network.graph.inserting_before(target):
        inserted = network.graph.call_module(path, (source,))
    target.replace_all_uses_with(inserted)
    if candidate.activation is None or traced.graph.units[candidate.block.end - 1].activation:
        return
    total = inserted if ports.target == ports.total else node_named(network, ports.total)
    network.add_submodule(f"{path}_activation", activation_module(candidate.activation))
    with network.graph.inserting_after(total):
        activation = network.graph.call_module(f"{path}_activation", (total,))
    total.replace_all_uses_with(activation, delete_user_cb=lambda user: user is not activation)


def truncated(network: fx.GraphModule, name: str) -> fx.GraphModule:
    """Returns the part of a network that computes one value; modules are shared with it."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in network.graph.nodes:
        copies[node] = graph.node_copy(node, lambda n: copies[n])
        if node.name == name:
            graph.output(copies[node])
            break
    part = fx.GraphModule(network, graph)
    part.graph.eliminate_dead_code()
    part.recompile()
    return part


def fold_batch_norms(network: fx.GraphModule) -> None:
    """Folds every batch normalisation into the convolution right before it, where it has one."""
    for node in network.graph.find_nodes(op="call_module"):
        norm = network.get_submodule(str(node.target))
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None or source is None:
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
        if is_transparent_module(network.get_submodule(str(node.target))):
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
    """Puts a module in the place of the one with this qualified name."""
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def _only_conv(network: fx.GraphModule, node: fx.Node) -> nn.Conv2d | None:
    """Returns the convolution that a node calls, if it runs once and is read once."""
    if node.op != "call_module" or len(node.users) != 1:
        return None
    conv = network.get_submodule(str(node.target))
    calls = network.graph.find_nodes(op="call_module", target=node.target)
    if not isinstance(conv, nn.Conv2d) or conv_refusal(conv, ANY_MAP) is not None:
        return None
    return conv if len(calls) == 1 else None


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
