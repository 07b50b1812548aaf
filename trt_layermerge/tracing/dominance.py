"""Parts of a network with one way in: what they begin with, and whether they have one way out.

A value *dominates* another if every way from the inputs leads through it. The last one that does is
found in one pass over a graph without circles (Cooper, Harvey and Kennedy, 2001). What lies between
the two is a part by itself if nothing inside is read from outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from torch import fx

from trt_layermerge.tracing.pieces import between
from trt_layermerge.tracing.reading import Reading

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
