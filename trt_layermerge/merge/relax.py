"""Model and plan → the relaxed network: trainable, and linear where it will be merged."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from trt_layermerge.blocks import RelaxedBlock
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import ConvUnit
from trt_layermerge.errors import CorruptInputError, UnsupportedModelError, UsageError
from trt_layermerge.kinds import kind_of
from trt_layermerge.merge.slim import channels_of, slimmed
from trt_layermerge.merge.surgery import block_key, block_path, copy_changed_inputs, splice, tidy
from trt_layermerge.tracing import TracedNetwork, trace_network


class RelaxedNet(nn.Module):
    """A network in which a plan's blocks stand unmerged; train it, then ``collapse`` it.

    The keys of its state dict depend on model, graph and plan alone.

    Attributes:
        net: The network itself.
        graph: What was traced of the original.
        plan: What was applied; its ``channels`` are all that remain of narrower streams.
    """

    def __init__(self, net: fx.GraphModule, graph: LayerGraph, plan: MergePlan) -> None:
        super().__init__()
        self.net = net
        self.graph = graph
        self.plan = plan

    def forward(self, *inputs: Any) -> Any:
        """Maps what the original network maps, to what it maps it to."""
        return self.net(*inputs)

    @property
    def blocks(self) -> dict[str, RelaxedBlock]:
        """The modules of the changed candidates in order, by names such as ``b3_5``."""
        found = {}
        for candidate in self.plan.changed:
            block = self.net.get_submodule(block_path(candidate.block))
            assert isinstance(block, RelaxedBlock)
            found[block_key(candidate.block)] = block
        return found


def relax(model: nn.Module | TracedNetwork, graph: LayerGraph, plan: MergePlan) -> RelaxedNet:
    """Returns a trainable copy of a model, in eval mode, with the plan's blocks in place.

    Removed convolutions and activations are gone, and all zero padding of a block stands at its
    input, so border pixels differ from the original's. What comes back is a plain module: train it
    with any loop, then ``collapse`` it.

    Args:
        model: The trained network, or what ``retrace`` returned for it; left untouched. The copy
            has its types and devices.
        graph: What ``trace`` returned for it.
        plan: Which blocks are replaced by what; every unit of the graph is in one of them.

    Raises:
        UsageError: If the graph is not the model's, the plan does not cover the graph, or a
            candidate's kind is unknown.
        UnsupportedModelError: If a candidate cannot stand in this graph.
    """
    covered = [i for c in plan.candidates for i in range(c.block.start, c.block.end)]
    if covered != list(range(len(graph.units))):
        raise UsageError(
            f"the plan covers {len(covered)} units in its own order, the graph has "
            f"{len(graph.units)}; make the plan from this graph (MergePlan.of, or the search stage)"
        )
    traced = retrace(model, graph)
    if plan.widths:
        plan = replace(plan, channels=channels_of(traced, plan))
        traced = slimmed(traced, plan.channels)
    blocks = [build_block(traced, candidate) for candidate in plan.changed]
    for block in blocks:
        traced.module.add_submodule(block_path(block.candidate.block), block)
    # The last first: a block then reads the original's value, which an earlier one replaces.
    for block in reversed(blocks):
        splice(traced, block)
    tidy(traced.module)
    return RelaxedNet(traced.module, graph, plan).eval()


def build_block(traced: TracedNetwork, candidate: Candidate) -> RelaxedBlock:
    """Returns the module of a candidate in eval mode, its weights copied or new.

    Args:
        traced: The original network; left untouched.
        candidate: What the module realises.

    Raises:
        UsageError: If its kind is unknown.
        UnsupportedModelError: If it cannot stand in this graph.
    """
    kind = kind_of(candidate)
    reason = kind.refusal(traced.graph, candidate)
    if reason is not None:
        raise UnsupportedModelError(
            f"the candidate {candidate} cannot be merged: {reason}; leave it out of the plan"
        )
    return kind.replacement(traced, candidate).eval()


def retrace(model: nn.Module | TracedNetwork, graph: LayerGraph) -> TracedNetwork:
    """Returns a traced copy of the model, after checking that it is the graph's.

    Args:
        model: The network; one that this returned before is copied, in a fraction of the time.
        graph: What ``trace`` returned for it.

    Raises:
        UsageError: If the model's layers are not those of the graph; its weights may differ.
    """
    if isinstance(model, TracedNetwork):
        if model.graph != graph:
            raise UsageError("the traced network is another graph's; trace the model again")
        return replace(model, module=copy.deepcopy(model.module))
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    drawn = tuple(
        torch.randn(shape, generator=generator).to(like.device, like.dtype)
        for shape in (graph.input_shape, *graph.further_shapes)
    )
    # Whole numbers count or choose something: zero is one of them everywhere.
    inputs = tuple(
        x if name.startswith(("float", "bfloat")) else torch.zeros_like(x, dtype=_type(name))
        for x, name in zip(drawn, graph.input_types or ["float"] * len(drawn), strict=True)
    )
    traced = trace_network(model, inputs)
    if _shape_of(traced.graph) != _shape_of(graph):
        raise UsageError(
            f"the graph of {len(graph.units)} units is not that of this {type(model).__name__}, "
            f"which has {len(traced.graph.units)}; trace the model again (the inspect stage)"
        )
    copy_changed_inputs(traced.module, inputs)
    return replace(traced, graph=graph)


def _type(name: str) -> torch.dtype:
    """Returns a type by its name. Raises ``CorruptInputError`` if torch has none."""
    found = getattr(torch, name, None)
    if isinstance(found, torch.dtype):
        return found
    raise CorruptInputError(
        f"the graph names an input of the type {name!r}, which there is not; trace the model again "
        "(the inspect stage)"
    )


def _shape_of(graph: LayerGraph) -> LayerGraph:
    """Returns the graph without what depends on the values of weights."""
    units = (replace(u, weight_l1=0.0) if isinstance(u, ConvUnit) else u for u in graph.units)
    return replace(graph, units=tuple(units))
