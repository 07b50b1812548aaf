"""Streams: which values of a network are of one width, and which of these may be narrower.

Values whose channels are matched one by one (by an addition, a depthwise convolution, pooling, an
activation) belong together. A dense convolution or a linear layer reads one stream and puts out
another. Whatever else touches a value fixes its width, and says why.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import Stream
from trt_layermerge.tracing.conv import is_plain_conv
from trt_layermerge.tracing.forms import FixedConv2d, PaddedConv2d, ScalingConv2d
from trt_layermerge.tracing.prepare import has_hooks
from trt_layermerge.tracing.reading import Reading, shape_of

_POOLS = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Upsample,
    nn.Flatten,
)
_CHANNEL_BY_CHANNEL: set[Any] = {
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    torch.add,
    torch.sub,
    torch.mul,
    torch.div,
    torch.flatten,
    functional.max_pool2d,
    functional.avg_pool2d,
    functional.adaptive_avg_pool2d,
    functional.adaptive_max_pool2d,
    functional.interpolate,
    "add",
    "mul",
    "flatten",
    "view",
    "reshape",
    "mean",
}
_RESHAPES = {"view", "reshape"}


@dataclass(eq=False)
class _Group:
    """Values of one width, while they are collected.

    Attributes:
        channels: Their number; 0 until a convolution or a map tells it.
        added: Whether an addition has several of them as terms.
    """

    channels: int
    writers: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    added: bool = False
    refusal: str | None = None


class _Groups:
    """The group of every value; groups are joined as they are found to be one."""

    def __init__(self) -> None:
        self._parent: dict[_Group, _Group] = {}
        self._of: dict[fx.Node, _Group] = {}

    def new(self, node: fx.Node, channels: int, refusal: str | None = None) -> _Group:
        """Returns a new group of one value."""
        group = _Group(channels, refusal=refusal)
        self._of[node] = group
        return group

    def of(self, node: fx.Node) -> _Group:
        """Returns the group of a value."""
        group = self._of[node]
        while group in self._parent:
            group = self._parent[group]
        return group

    def join(self, node: fx.Node, others: Iterable[fx.Node]) -> _Group:
        """Puts a value into the group of others, which become one; returns it."""
        first, *rest = dict.fromkeys(self.of(other) for other in others)
        for group in rest:
            first.writers += group.writers
            first.readers += group.readers
            first.norms += group.norms
            first.added |= group.added
            first.refusal = first.refusal or group.refusal
            self._parent[group] = first
        self._of[node] = first
        return first

    def found(self) -> list[_Group]:
        """Returns all groups, in the order in which they were begun."""
        return list(dict.fromkeys(self.of(node) for node in self._of))


def find_streams(reading: Reading, graph: LayerGraph) -> tuple[Stream, ...]:
    """Returns the streams of a network outside residual branches, in order.

    Args:
        reading: The network.
        graph: What else was found in it.
    """
    groups = _Groups()
    for node in reading.order:
        _place(reading, groups, node)
    _fix_pieces(reading, groups, graph)
    spans = [(r.start, r.end) for r in graph.residuals] + [(b.start, b.end) for b in graph.branches]
    inside = {unit.name for start, end in spans for unit in graph.units[start : end - 1]}
    place = {str(node.target): number for node, number in reading.order.items()}
    found = []
    for group in groups.found():
        inner = not group.added and not inside.isdisjoint(group.writers)
        convs = [name for name in group.writers if not _is_linear(reading, name)]
        if convs and not inner:
            writers, readers, norms = (
                tuple(sorted(names, key=place.__getitem__))
                for names in (group.writers, group.readers, group.norms)
            )
            found.append(Stream(writers[0], group.channels, writers, readers, norms, group.refusal))
    return tuple(sorted(found, key=lambda stream: place[stream.name]))


def _place(reading: Reading, groups: _Groups, node: fx.Node) -> None:
    """Puts a value into a group; what it does to those that it reads is noted there."""
    sources = [n for n in node.all_input_nodes if shape_of(n)]
    shape, module = shape_of(node), reading.module(node)
    if node.op == "placeholder":
        groups.new(node, _channels(shape), "it is an input")
        return
    if node.op == "call_module" and len(sources) == 1 and module is not None:
        if isinstance(module, nn.Conv2d) or type(module) is nn.Linear:
            _layer(reading, groups, node, module)
            return
        if node in reading.norms:
            groups.join(node, sources).norms.append(str(node.target))
            return
    if sources and _keeps_channels(reading, groups, node, sources):
        group = groups.join(node, sources)
        group.added |= len(sources) > 1 and node in reading.additions
        return
    reason = f"{_title(reading, node)} reads or makes it"
    if _asks_size(node):
        return
    for source in sources:
        group = groups.of(source)
        group.refusal = group.refusal or reason
    if shape:
        groups.new(node, _channels(shape), reason)


def _layer(reading: Reading, groups: _Groups, node: fx.Node, module: nn.Module) -> None:
    """Puts the output of a convolution or a linear layer into a group."""
    (source,) = (n for n in node.all_input_nodes if shape_of(n))
    name, group, channels = str(node.target), groups.of(source), _channels(shape_of(node))
    reason = reading.shared(module)
    if has_hooks(module):
        reason = "it has forward hooks"
    if isinstance(module, nn.Conv2d):
        known = is_plain_conv(module) or isinstance(
            module, PaddedConv2d | ScalingConv2d | FixedConv2d
        )
        if not known:
            reason = reason or "it is computed in a way of its own"
        elif module.groups > 1 and module.groups == module.in_channels == module.out_channels:
            group = groups.join(node, [source])
            group.writers.append(name)
            group.readers.append(name)
            group.refusal = group.refusal or (reason and f"{name}: {reason}")
            return
        elif module.groups > 1:
            reason = reason or "its channels are grouped"
    elif group.channels == 0 or shape_of(source)[-1] % group.channels or len(shape_of(source)) != 2:
        reason = reason or "its inputs are no whole channels"
    made = groups.new(node, channels)
    made.writers.append(name)
    group.readers.append(name)
    for one in (group, made):
        one.refusal = one.refusal or (reason and f"{name}: {reason}")


def _keeps_channels(
    reading: Reading, groups: _Groups, node: fx.Node, sources: list[fx.Node]
) -> bool:
    """Whether channel c of a value is computed from channel c of what it reads, and nothing else.

    Maps may be flattened, each channel's values side by side.
    """
    shape, module = shape_of(node), reading.module(node)
    if node in reading.handed_on or node in reading.activations:
        return True
    if module is not None:
        if not isinstance(module, _POOLS) or has_hooks(module):
            return False
    elif node.target not in _CHANNEL_BY_CHANNEL and getattr(node.target, "__name__", "") not in (
        "adaptive_avg_pool2d",
        "avg_pool2d",
        "max_pool2d",
        "interpolate",
    ):
        return False
    if any(n.op == "get_attr" for n in sources):
        return False
    widths = {groups.of(n).channels for n in sources}
    shapes = [shape_of(n) for n in sources]
    if len(widths) > 1 or len({len(s) for s in shapes}) > 1 or not shape:
        return False
    (channels,) = widths
    if len(sources) > 1:  # sums and products, gates of one value a channel included
        return len(shape) == len(shapes[0]) and all(s[1] == shape[1] for s in shapes)
    before = shapes[0]
    if node.target == "mean" or node.target is torch.mean:
        return _over_positions(node, before) and shape[1] == channels
    if len(shape) == 4:
        return len(before) == 4 and shape[1] == before[1] == channels
    flat = len(before) == 4 and before[1] == channels and shape[1] == math.prod(before[1:])
    return len(shape) == 2 and shape[0] == before[0] and (flat or shape == before)


def _over_positions(node: fx.Node, shape: tuple[int, ...]) -> bool:
    """Whether a mean is one over rows and columns."""
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if not isinstance(axes, list | tuple) or not all(isinstance(a, int) for a in axes):
        return False
    return len(shape) == 4 and sorted(int(str(a)) % 4 for a in axes) == [2, 3]


def _asks_size(node: fx.Node) -> bool:
    """Whether a node asks for the number of images alone."""
    return node.op == "call_method" and node.target == "size" and node.args[1:] == (0,)


def _fix_pieces(reading: Reading, groups: _Groups, graph: LayerGraph) -> None:
    """Fixes whatever a part that is not understood contains: it is timed as it is."""
    nodes = {node.name: node for node in reading.order}
    for branch in graph.branches:
        unit = graph.units[branch.end - 1]
        names = [branch.source, branch.shortcut, unit.nodes.branch, unit.nodes.sum, unit.nodes.out]
        for inner in graph.units[branch.start : branch.end - 1]:
            names += [nodes[inner.nodes.conv].all_input_nodes[0].name, inner.nodes.conv]
        for name in names:
            group = None if name is None else groups.of(nodes[name])
            if group is not None:
                group.refusal = group.refusal or f"it runs through {unit.name}, timed as a whole"


def _is_linear(reading: Reading, name: str) -> bool:
    return isinstance(reading.network.get_submodule(name), nn.Linear)


def _channels(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) > 1 else 0


def _title(reading: Reading, node: fx.Node) -> str:
    """Returns what a user would call an operation."""
    if node.op == "output":
        return "what the network returns"
    if node.op == "call_module":
        return f"{node.target} ({type(reading.module(node)).__name__})"
    return str(getattr(node.target, "__name__", node.target))
