"""Values inside a traced network: recorded once, and recomputed only where one of them changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

Values = dict[str, Any]

CACHE_BYTES = 16 << 20
"""Bytes of the largest value of a batch: more than a processor's cache only makes it wait."""

MOST_IMAGES = 64
GROUP_BYTES = 64 << 20


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
    """Values of a network on fixed images, batch by batch.

    What was asked for last is kept as far as memory allows, so that candidates which follow each
    other share it; if all fits, it is recorded once, in one run.

    Args:
        network: The traced network, in eval mode.
        images: Its inputs ``(N, C, H, W)``.
        names: Every value that may be asked for.
        batch: Images a batch, or None for as many as a processor's cache holds.
        limit_bytes: Bytes that kept values may take.

    Attributes:
        parts: The images, batch by batch.
        bytes_an_image: Bytes of each value, for one image.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        images: Tensor,
        names: Iterable[str],
        batch: int | None,
        limit_bytes: int,
    ) -> None:
        self._network, self._limit_bytes = network, limit_bytes
        self.bytes_an_image = {
            name: _bytes(value) for name, value in record(network, images[:1], names).items()
        }
        self._images = len(images)
        self.parts = torch.split(images, batch or cached_batch(self.bytes_an_image.values()))
        self._kept: dict[str, list[Any]] = {}
        if self.fits(self.bytes_an_image):
            self._keep(self.bytes_an_image)

    def fits(self, names: Iterable[str]) -> bool:
        """Whether the named values of all images may be kept together."""
        return self._bytes(names) <= self._limit_bytes

    def batches(self, names: Sequence[str]) -> Iterator[Values]:
        """Yields the named values of every batch, in order."""
        if not self.fits(names):
            yield from (record(self._network, part, names) for part in self.parts)
            return
        missing = [name for name in names if name not in self._kept]
        self._make_room(missing, names)
        self._keep(missing)
        for name in names:  # the one that was asked for last stays longest
            self._kept[name] = self._kept.pop(name)
        columns = {name: self._kept[name] for name in names}
        for number in range(len(self.parts)):
            yield {name: values[number] for name, values in columns.items()}

    def groups(self, names: Sequence[str], limit_bytes: int) -> Iterator[Values]:
        """Yields the named tensors of as many of the first images as the limit allows, in order.

        At least one batch is used; batches are joined to ``GROUP_BYTES`` or more.
        """
        group = max(1, GROUP_BYTES // self._bytes_an_image(names))
        room = self.images_within(names, limit_bytes)
        waiting: list[Values] = []
        for values in self.batches(names):
            waiting.append(values)
            room -= len(values[names[0]])
            if room <= 0 or sum(len(part[names[0]]) for part in waiting) >= group:
                yield _joined(waiting, names)
                waiting = []
            if room <= 0:
                return

    def images_within(self, names: Sequence[str], limit_bytes: int) -> int:
        """Returns how many images ``groups`` uses: whole batches, the last one begun counts."""
        wanted = min(self._images, limit_bytes // self._bytes_an_image(names))
        batch = len(self.parts[0])
        return min(self._images, batch * max(1, ceil(wanted / batch)))

    def _bytes_an_image(self, names: Iterable[str]) -> int:
        return max(1, sum(self.bytes_an_image[name] for name in names))

    def _bytes(self, names: Iterable[str]) -> int:
        return self._images * sum(self.bytes_an_image[name] for name in names)

    def _make_room(self, missing: Sequence[str], wanted: Sequence[str]) -> None:
        """Forgets what was asked for longest ago until the missing values fit."""
        for name in [name for name in self._kept if name not in wanted]:
            if self.fits([*self._kept, *missing]):
                return
            del self._kept[name]

    def _keep(self, names: Iterable[str]) -> None:
        wanted = list(names)
        recorded = [record(self._network, part, wanted) for part in self.parts] if wanted else []
        self._kept |= {name: [values[name] for values in recorded] for name in wanted}


def cached_batch(bytes_an_image: Iterable[int]) -> int:
    """Returns how many images are computed at a time, by the bytes of each value of one image."""
    return max(1, min(MOST_IMAGES, CACHE_BYTES // max(1, *bytes_an_image)))


def _joined(parts: Sequence[Values], names: Sequence[str]) -> Values:
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
