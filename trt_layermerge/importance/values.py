"""Values inside a traced network: recorded once, and recomputed only where one of them changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

Values = dict[str, Any]


@dataclass(frozen=True)
class Rest:
    """What follows from one value of a network.

    Attributes:
        nodes: Every node that depends on it, in order, the output last.
        needed: Names of the values that these nodes read but do not make, itself left out.
    """

    nodes: tuple[fx.Node, ...]
    needed: frozenset[str]


def rest_of(network: fx.GraphModule, name: str) -> Rest:
    """Returns what has to be recomputed when the value ``name`` changes. Raises ``KeyError``."""
    changed = {_node(network, name)}
    nodes: list[fx.Node] = []
    needed: set[str] = set()
    for node in network.graph.nodes:
        if changed.isdisjoint(node.all_input_nodes):
            continue
        changed.add(node)
        nodes.append(node)
        needed.update(n.name for n in node.all_input_nodes)
    return Rest(tuple(nodes), frozenset(needed - {n.name for n in changed}))


def finish(network: fx.GraphModule, rest: Rest, values: Mapping[str, Any]) -> Any:
    """Returns the network's output, given the changed value and all that ``rest`` needs."""
    return _run(network, rest.nodes, values, frozenset())["output"]


def record(network: fx.GraphModule, images: Tensor, names: Iterable[str]) -> Values:
    """Returns the values of that name on a batch of images, the rest of the network not run."""
    wanted = frozenset(names)
    nodes = list(network.graph.nodes)
    last = max((i for i, node in enumerate(nodes) if node.name in wanted), default=-1)
    inputs = {node.name: images for node in nodes if node.op == "placeholder"}
    recorded = _run(network, [n for n in nodes[: last + 1] if n.name not in inputs], inputs, wanted)
    return {name: recorded[name] for name in wanted}


class RecordedValues:
    """Values of a network on fixed images, batch by batch; kept if memory allows, else recomputed.

    Args:
        network: The traced network, in eval mode.
        images: Its inputs ``(N, C, H, W)``.
        names: Every value that may be asked for.
        batch: Images a batch.
        limit_bytes: Bytes that the values of all images may take to be kept.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        images: Tensor,
        names: Iterable[str],
        batch: int,
        limit_bytes: int,
    ) -> None:
        self._network = network
        self._parts = torch.split(images, batch)
        self.bytes_an_image = {
            name: _bytes(value) for name, value in record(network, images[:1], names).items()
        }
        self.kept = sum(self.bytes_an_image.values()) * len(images) <= limit_bytes
        everything = self.bytes_an_image.keys() if self.kept else ()
        self._recorded = [record(network, part, everything) for part in self._parts]

    def batches(self, names: Sequence[str]) -> Iterator[Values]:
        """Yields the named values of every batch, in order."""
        for images, recorded in zip(self._parts, self._recorded, strict=True):
            values = recorded if self.kept else record(self._network, images, names)
            yield {name: values[name] for name in names}

    def whole(self, names: Sequence[str], limit_bytes: int) -> Values:
        """Returns the named values, tensors of as many of the first images as the limit allows.

        At least one batch is returned.
        """
        an_image = sum(self.bytes_an_image[name] for name in names)
        room = limit_bytes // max(1, an_image)
        parts: list[Values] = []
        for values in self.batches(names):
            parts.append(values)
            room -= len(values[names[0]])
            if room <= 0:
                break
        return {name: torch.cat([part[name] for part in parts]) for name in names}


@torch.no_grad()
def _run(
    network: fx.GraphModule,
    nodes: Sequence[fx.Node],
    values: Mapping[str, Any],
    keep: frozenset[str],
) -> Values:
    """Runs nodes in order; values that no later node reads are dropped, unless kept."""
    interpreter = fx.Interpreter(network, garbage_collect_values=False)
    interpreter.env = {n: values[n.name] for n in network.graph.nodes if n.name in values}
    last_reader = {source: node for node in nodes for source in node.all_input_nodes}
    for node in nodes:
        interpreter.env[node] = interpreter.run_node(node)
        for source in node.all_input_nodes:
            if last_reader[source] is node and source.name not in keep:
                interpreter.env.pop(source, None)
    return {node.name: value for node, value in interpreter.env.items()}


def _node(network: fx.GraphModule, name: str) -> fx.Node:
    """Returns the node of that name. Raises ``KeyError``."""
    by_name: dict[str, fx.Node] = {node.name: node for node in network.graph.nodes}
    return by_name[name]


def _bytes(value: Any) -> int:
    """Returns the bytes of every tensor in a value."""
    total = 0

    def count(part: Any) -> None:
        nonlocal total
        total += part.numel() * part.element_size() if isinstance(part, Tensor) else 0

    map_aggregate(value, count)
    return total
