"""Parts of a traced network: where they begin and end, and what tells equal ones.

A value *dominates* another if every way from the inputs leads through it. The last one that does is
found in one pass over a graph without circles (Cooper, Harvey and Kennedy, 2001). What lies between
the two is a part by itself if nothing inside is read from outside.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from trt_layermerge.core.conv import PieceSpec
from trt_layermerge.tracing.reading import Reading, shape_of


def behind(node: fx.Node) -> dict[fx.Node, None]:
    """Returns everything that a value is computed from, as an ordered set, the nearest first."""
    found = dict.fromkeys(node.all_input_nodes)
    waiting = list(found)
    for known in waiting:
        new = [n for n in known.all_input_nodes if n not in found]
        found.update(dict.fromkeys(new))
        waiting += new
    return found


def between(source: fx.Node, end: fx.Node, *, last: bool = False) -> tuple[fx.Node, ...]:
    """Returns what computes one value from another, in order; constants are left out.

    Args:
        source: A value through which every way from the inputs to ``end`` leads.
        end: The value that is computed.
        last: Whether ``end`` itself is one of them.
    """
    met: set[fx.Node] = set()
    waiting = [] if end is source else [end]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node is not source and node.op != "get_attr" and node not in met:
                met.add(node)
                waiting.append(node)
    if last and end is not source:
        met.add(end)
    return tuple(node for node in end.graph.nodes if node in met)


def piece_spec(reading: Reading, source: fx.Node, end: fx.Node) -> PieceSpec:
    """Returns what computes one map from another as something to be timed.

    Args:
        reading: The traced network.
        source: The map that is read, ``(N, C_in, H, W)``, as for ``between``.
        end: The map that comes out, ``(N, C_out, H', W')``.
    """
    (_, channels, height, width), (_, out_channels, rows, columns) = map(shape_of, (source, end))
    numbers = {source: 0}
    lines = [[height, width, channels]]
    for node in between(source, end, last=True):
        numbers[node] = len(numbers)
        lines.append(_line(reading, node, numbers))
    digest = hashlib.sha256(json.dumps(lines).encode()).hexdigest()
    return PieceSpec(digest, channels, out_channels, height, width, (rows, columns))


def _line(reading: Reading, node: fx.Node, numbers: Mapping[fx.Node, int]) -> list[Any]:
    """Returns what a node does, in words that do not tell its name or its weights."""

    def argument(value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        number = numbers.get(value)
        return f"%{number}" if number is not None else _tensor(reading.stored(value))

    arguments = fx.node.map_aggregate((node.args, node.kwargs), argument)
    module = reading.module(node)
    done = _function(node.target) if module is None else _module(module)
    return [done, repr(arguments), list(shape_of(node))]


def _function(target: Any) -> str:
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}"


def _module(module: nn.Module) -> list[Any]:
    """Returns types, settings and shapes of tensors of a module and all that is in it."""
    return [
        [
            name,
            f"{type(part).__module__}.{type(part).__qualname__}",
            part.extra_repr(),
            [_tensor(t) for t in (*part.parameters(False), *part.buffers(False))],
            sorted(f"{k}={v}" for k, v in vars(part).items() if _is_setting(k, v)),
        ]
        for name, part in module.named_modules()
    ]


def _is_setting(name: str, value: Any) -> bool:
    simple = isinstance(value, bool | int | float | str | tuple)
    return simple and not name.startswith("_") and name != "training"


def _tensor(value: Any) -> str:
    """Returns shape and type of a tensor; a network cast to another floating type stays itself."""
    if not isinstance(value, torch.Tensor):
        return repr(value)
    kind = "float" if value.is_floating_point() else value.dtype
    return f"{kind}{tuple(value.shape)}"


Dominators: TypeAlias = Mapping[fx.Node, fx.Node | None]
"""The last value before each that dominates it; None where that is no value."""


def dominators(reading: Reading) -> Dominators:
    """Returns the dominators of every value; parameters and constants are no inputs."""
    found: dict[fx.Node, fx.Node | None] = {}
    depth: dict[fx.Node, int] = {}

    def meet(a: fx.Node | None, b: fx.Node | None) -> fx.Node | None:
        while a is not b:
            if a is None or b is None:
                return None
            if depth[a] >= depth[b]:
                a = found[a]
            else:
                b = found[b]
        return a

    for node in reading.order:
        before = [n for n in node.all_input_nodes if n in depth]
        if node.op != "placeholder" and not before:
            continue  # a constant
        parent: fx.Node | None = before[0] if before else None
        for other in before[1:]:
            parent = meet(parent, other)
        found[node] = parent
        depth[node] = 0 if parent is None else depth[parent] + 1
    return found


def dominating(found: Dominators, node: fx.Node) -> Iterator[fx.Node]:
    """Yields every value before a node that dominates it, the last one first."""
    value = found.get(node)
    while value is not None:
        yield value
        value = found[value]


def enclosed(source: fx.Node, end: fx.Node) -> tuple[fx.Node, ...] | None:
    """Returns what lies between two values, in order, or None if something is read outside.

    Args:
        source: A value that dominates ``end``; others may read it.
        end: The value that comes out.
    """
    inside = between(source, end)
    met = {*inside, end}
    return inside if all(met.issuperset(node.users) for node in inside) else None
