"""How much of a network's arithmetic candidates reach, and how much their removals take away."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.kinds import kind_of
from trt_layermerge.search import Option, chain_frontier
from trt_layermerge.tracing import TracedNetwork
from trt_layermerge.tracing.pieces import between


@dataclass(frozen=True)
class Reach:
    """Shares of a network's multiply-accumulates.

    Attributes:
        total: Multiply-accumulates of convolutions and matrix products, one image.
        reached: Share that some candidate replaces or removes.
        left: Share that is left where every removal on offer is taken that takes most away.
    """

    total: int
    reached: float
    left: float


def reach(
    traced: TracedNetwork, candidates: Iterable[Candidate], inputs: tuple[Tensor, ...]
) -> Reach:
    """Returns how far candidates reach into a network.

    Args:
        traced: The network.
        candidates: What may replace its blocks; units left as they are do not count.
        inputs: One image.
    """
    work, graph = _work(traced.module, inputs), traced.graph
    candidates = [c for c in candidates if not c.original]
    nodes = {node.name: node for node in traced.module.graph.nodes}
    own = [_own(graph, nodes, work, index) for index in range(len(graph.units))]
    touched = {i for c in candidates for i in range(c.block.start, c.block.end)}
    total = sum(work.values())
    removals = (c for c in candidates if kind_of(c).family == "removal")
    options = [Option(i, i + 1, macs, 0.0) for i, macs in enumerate(own)]
    options += [
        Option(c.block.start, c.block.end, _remaining(graph, nodes, work, c), 0.0) for c in removals
    ]
    least = float(chain_frontier(len(own), options).latency_ms[0]) if own else 0.0
    saved = sum(own) - least
    share = max(total, 1)
    return Reach(total, sum(own[i] for i in touched) / share, (total - saved) / share)


def _own(graph: LayerGraph, nodes: dict[str, fx.Node], work: dict[str, int], index: int) -> float:
    """Returns the work of a unit, its projections included; that of a branch less its units'."""
    unit = graph.units[index]
    branch = graph.branch_ending_at.get(index + 1)
    if branch is None:
        projections = [
            s.conv
            for r in graph.residuals
            if r.end == index + 1
            for s in r.shortcuts
            if s.conv is not None
        ]
        targets = {unit.name, *projections}
        return sum(work[n.name] for n in nodes.values() if str(n.target) in targets)
    inside = between(nodes[branch.source], nodes[unit.nodes.sum])
    rest = sum(_own(graph, nodes, work, i) for i in range(branch.start, index))
    return sum(work[node.name] for node in inside) - rest


def _remaining(
    graph: LayerGraph, nodes: dict[str, fx.Node], work: dict[str, int], candidate: Candidate
) -> float:
    """Returns the work of what a removal leaves: a projection, or whatever the shortcut is."""
    branch = graph.branch_at(candidate.block)
    if branch is not None:
        beside = between(nodes[branch.source], nodes[branch.shortcut], last=True)
        return sum(work[node.name] for node in beside)
    return sum(spec.macs for spec in candidate.convs)


@torch.no_grad()
def _work(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> dict[str, int]:
    """Returns the multiply-accumulates of every node, by name."""

    class Counting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            with FlopCounterMode(display=False) as counter:
                value = super().run_node(n)
            found[n.name] = counter.get_total_flops() // 2
            return value

    found: dict[str, int] = {}
    Counting(module).run(*inputs)
    return found
