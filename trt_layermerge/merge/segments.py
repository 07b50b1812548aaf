"""Parts of a traced network, compiled to plain code: from values that are known to wanted ones."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument, map_arg

from trt_layermerge.core.inputs import parts_of
from trt_layermerge.merge.surgery import inputs_of

Values = dict[str, Any]

ACTIVATIONS = frozenset({nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.LeakyReLU, nn.SiLU})
"""What may overwrite its input: one value in, one value out, each from its own place."""

ALLOCATING = frozenset({nn.Conv2d, nn.BatchNorm2d, nn.Linear, operator.add, torch.add})
"""What puts out a new value, never a view of another one."""


@dataclass(frozen=True)
class Segment:
    """The operations that lead from some values of a network to others.

    Attributes:
        given: Names of the values that are read, in the order of ``module``'s arguments.
        wanted: Names of the values that come out.
        module: Maps the values given to a tuple of those wanted.
    """

    given: tuple[str, ...]
    wanted: tuple[str, ...]
    module: fx.GraphModule

    @torch.no_grad()
    def __call__(self, values: Mapping[str, Any]) -> Values:
        """Returns the wanted values. Raises ``KeyError`` if one that is read is not there."""
        found = self.module(*(values[name] for name in self.given))
        return dict(zip(self.wanted, found, strict=True))


def segment(network: fx.GraphModule, given: frozenset[str], wanted: tuple[str, ...]) -> Segment:
    """Returns what computes the wanted values, bit for bit as the network does.

    It holds only what is found on the way back from the wanted values, which ends at given ones.
    Modules are the network's own, identities are left out, a value is dropped once it is read, and
    activations overwrite what nothing else reads.

    Args:
        network: A traced network in eval mode; left untouched.
        given: Names of values that will be known; those that are not met are not read.
        wanted: Names of values, ``output`` for what the network returns.

    Raises:
        KeyError: If the network has no such value, or reads an input that is not given.
    """
    by_name: dict[str, fx.Node] = {node.name: node for node in network.graph.nodes}
    met = _way_back([by_name[name] for name in wanted], given)
    nodes = [node for node in network.graph.nodes if node in met]
    starts = [node for node in nodes if node.name in given]
    graph = fx.Graph()
    made: dict[fx.Node, Argument] = {node: graph.placeholder(node.name) for node in starts}

    for node in nodes:
        if node in made:
            continue
        if node.op == "placeholder":
            raise KeyError(f"the input {node.name} is not given")
        if node.op == "output" or _is_identity(network, node):
            made[node] = map_arg(node.args[0], made.__getitem__)
        else:
            made[node] = graph.node_copy(node, made.__getitem__)
    graph.output(tuple(made[by_name[name]] for name in wanted))
    module = fx.GraphModule(_attributes(network, graph), graph, "Segment")
    return Segment(tuple(node.name for node in starts), wanted, module)


class Walk:
    """Values of a network on fixed images, asked for in the order in which they are computed.

    What later values are computed from is kept, in the place of what they followed from, so that
    the network runs once from end to end; where that takes more than ``limit_bytes``, they are
    computed again from what was kept before, the images at first.

    Args:
        network: A traced network in eval mode. Its modules may change behind what was asked for.
        batches: Its inputs, ``(N, C, H, W)`` or several (``core.inputs``), batch by batch.
        limit_bytes: Memory for what is kept.
    """

    def __init__(
        self, network: fx.GraphModule, batches: Sequence[Any], limit_bytes: int = 2 << 30
    ) -> None:
        self._network, self._limit_bytes = network, limit_bytes
        names = inputs_of(network)
        self._images = [dict(zip(names, parts_of(batch), strict=True)) for batch in batches]
        self._known: list[Values] = list(self._images)

    def at(self, name: str) -> Iterator[Any]:
        """Yields a value of every batch, in order; may be asked for again until the next one.

        Has to be taken to its end.

        Raises:
            KeyError: If the network has no such value.
        """
        live = self._live(name)
        found = segment(self._network, frozenset(self._known[0]), (name, *live))
        kept = False
        for number, images in enumerate(self._images):
            reached = found(self._known[number])
            if number == 0:
                held = sum(v.nbytes for v in reached.values() if isinstance(v, Tensor))
                kept = held * len(self._images) <= self._limit_bytes
            if kept:
                self._known[number] = {**images, **reached}
            yield reached[name]

    def _live(self, name: str) -> list[str]:
        """Returns what is computed up to a value and read after it, itself left out."""
        nodes = list(self._network.graph.nodes)
        place = next((i for i, node in enumerate(nodes) if node.name == name), None)
        if place is None:
            raise KeyError(f"the network has no value {name}")
        before, after = nodes[: place + 1], set(nodes[place + 1 :])
        return [
            node.name
            for node in before
            if node.op not in ("placeholder", "get_attr")
            and node.name != name
            and not after.isdisjoint(node.users)
        ]


@dataclass(frozen=True)
class Rest:
    """What follows from one value of a network.

    Attributes:
        names: Every value that depends on it, in order, ``output`` last.
        needed: The values that these are computed from but not among, itself and parameters left
            out.
    """

    names: tuple[str, ...]
    needed: frozenset[str]


def rest_of(network: fx.GraphModule, name: str) -> Rest:
    """Returns what has to be recomputed when the value ``name`` changes. Raises ``KeyError``."""
    by_name: dict[str, fx.Node] = {node.name: node for node in network.graph.nodes}
    changed = {by_name[name]: None}
    read: set[fx.Node] = set()
    for node in network.graph.nodes:
        if not changed.keys().isdisjoint(node.all_input_nodes):
            changed[node] = None
            read.update(node.all_input_nodes)
    needed = {node.name for node in read - changed.keys() if node.op != "get_attr"}
    return Rest(tuple(node.name for node in changed)[1:], frozenset(needed))


def record(network: fx.GraphModule, images: Any, names: Iterable[str]) -> Values:
    """Returns the values of that name on a batch of images, the rest of the network not run.

    Args:
        network: A traced network, in eval mode.
        images: Its input ``(N, C, H, W)``, or several (``core.inputs``).
        names: Names of the values, ``output`` for what the network returns.

    Raises:
        KeyError: If the network has no such value.
    """
    given = dict(zip(inputs_of(network), parts_of(images), strict=True))
    return segment(network, frozenset(given), tuple(names))(given)


def _way_back(ends: list[fx.Node], given: frozenset[str]) -> set[fx.Node]:
    """Returns the nodes that lead to the ends, given ones the first of them."""
    met: set[fx.Node] = set()
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node not in met:
            met.add(node)
            waiting += [] if node.name in given else node.all_input_nodes
    return met


def _is_identity(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module" or len(node.args) != 1:
        return False
    return type(network.get_submodule(str(node.target))) is nn.Identity


def _attributes(network: fx.GraphModule, graph: fx.Graph) -> dict[str, Any]:
    """Returns what the graph calls or reads of the network, by path.

    Activations that may overwrite their input become calls of copies that do.
    """
    found: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            attribute = operator.attrgetter(str(node.target))(network)
            if node.op == "call_module" and _may_overwrite(node, found, attribute):
                attribute = copy(attribute)
                attribute.inplace = True
                node.target = f"overwriting_{node.name}"
            found[node.target] = attribute
    return found


def _may_overwrite(node: fx.Node, called: dict[str, Any], module: nn.Module) -> bool:
    """Whether a node is an activation of a new value that nothing else reads."""
    if type(module) not in ACTIVATIONS or len(node.args) != 1:
        return False
    source = node.all_input_nodes[0]
    if len(source.users) > 1:  # the segment's output is one, for what is wanted
        return False
    if source.op == "call_module":
        return type(called[str(source.target)]) in ALLOCATING
    return source.op == "call_function" and source.target in ALLOCATING
