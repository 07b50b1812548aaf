"""Where a changed network and its original should have the same values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx, nn

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.merge.relax import RelaxedNet, retrace
from trt_layermerge.merge.slim import Chosen
from trt_layermerge.merge.surgery import block_path, block_ports, node_named, outputs_of, tapped
from trt_layermerge.tracing import TracedNetwork


@dataclass(frozen=True, slots=True)
class Place:
    """The end of a changed block, behind the addition and the activation that end with it.

    Where the block got an activation that the original has not, the place is before it.

    Attributes:
        candidate: What stands there.
        call: Name of the node of the changed network that runs the block.
        mine: Name of the value in the changed network.
        theirs: Name of the value in the original.
    """

    candidate: Candidate
    call: str
    mine: str
    theirs: str


def places(relaxed: RelaxedNet, traced: TracedNetwork) -> tuple[Place, ...]:
    """Returns the ends of all changed blocks of which something is left, in order.

    Args:
        relaxed: The changed network.
        traced: The original, as ``retrace`` returns it; where a plan narrows streams, their
            remaining channels are added to it as values.
    """
    known = {node.name for node in relaxed.net.graph.nodes}
    found = []
    for candidate in relaxed.plan.changed:
        ports = block_ports(traced, candidate)
        (call,) = relaxed.net.graph.find_nodes(op="call_module", target=block_path(candidate.block))
        activated = relaxed.graph.units[candidate.block.end - 1].activation is not None
        theirs = ports.out if activated else ports.total
        mine = theirs if theirs in known else call.name
        stream = traced.graph.written_streams.get(traced.graph.units[candidate.block.end - 1].name)
        if stream is not None and stream.name in relaxed.plan.channels:
            theirs = _chosen(traced.module, theirs, relaxed.plan.channels[stream.name])
        found.append(Place(candidate, call.name, mine, theirs))
    return tuple(found)


def _chosen(network: fx.GraphModule, name: str, kept: Sequence[int]) -> str:
    """Adds some channels of a value to a network, in place; returns the name of the new value."""
    value, path = node_named(network, name), f"chosen_{name}"
    network.add_submodule(path, Chosen(kept))
    with network.graph.inserting_after(value):
        return network.graph.call_module(path, (value,)).name


def matched(relaxed: RelaxedNet, model: nn.Module) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Returns the changed network and the original, each with more than its outputs.

    Both return a tuple of equal length: the outputs, then the values at the changed blocks' ends.
    The first shares its modules with ``relaxed``, the second is a copy of the original.

    Raises:
        UsageError: If the model is another one.
    """
    traced = retrace(model, relaxed.graph)
    ends = places(relaxed, traced)
    mine = tapped(relaxed.net, [*outputs_of(relaxed.net), *(p.mine for p in ends)])
    return mine, tapped(traced.module, [*outputs_of(traced.module), *(p.theirs for p in ends)])
