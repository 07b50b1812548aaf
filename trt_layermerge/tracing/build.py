"""The layer graph of a traced network."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import fx, nn
from torch.nn import functional

from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import (
    Branch,
    ConvUnit,
    OpaqueUnit,
    Residual,
    Segment,
    Shortcut,
    UnitNodes,
)
from trt_layermerge.tracing.assemble import Assembly, assemble
from trt_layermerge.tracing.barriers import find_barriers
from trt_layermerge.tracing.branches import OpaqueBranch, opaque_branches
from trt_layermerge.tracing.bridges import find_bridges, find_projections
from trt_layermerge.tracing.forms import weight_of
from trt_layermerge.tracing.reading import Reading, shape_of
from trt_layermerge.tracing.residuals import Core, Path
from trt_layermerge.tracing.wholes import wholes

_AVERAGES: set[Any] = {
    functional.avg_pool2d,
    functional.adaptive_avg_pool2d,
    "mean",
}


def build_graph(reading: Reading, input_shape: tuple[int, ...]) -> LayerGraph:
    """Returns the layer graph of a network that was read."""
    assembly = assemble(reading)
    found = opaque_branches(assembly)
    numbers = [i + sum(branch.last <= i for branch in found) for i in range(len(assembly.cores))]
    opaque = [_opaque_unit(branch.last + k, branch) for k, branch in enumerate(found)]
    convs = [_unit(reading, numbers[i], core) for i, core in enumerate(assembly.cores)]
    residuals = tuple(
        Residual(numbers[start], numbers[end - 1] + 1, tuple(map(_shortcut, draft.paths)))
        for draft in assembly.drafts
        for start, end in [assembly.span(draft)]
    )
    return LayerGraph(
        units=tuple(sorted([*convs, *opaque], key=lambda unit: unit.index)),
        segments=_segments(assembly, numbers, opaque),
        residuals=residuals,
        barriers=find_barriers(assembly, numbers),
        input_shape=input_shape,
        head_pointwise=_head_pointwise(assembly, convs, residuals),
        branches=_branches(found, opaque, numbers),
        bridges=find_bridges(assembly, numbers),
        projections=find_projections(assembly, numbers),
        wholes=wholes(assembly, found, numbers),
    )


def _unit(reading: Reading, index: int, core: Core) -> ConvUnit:
    conv = reading.module(core.conv)
    assert isinstance(conv, nn.Conv2d)  # cores are made of convolution modules
    return ConvUnit(
        index=index,
        name=str(core.conv.target),
        bn=None if core.norm is None else str(core.norm.target),
        activation=core.activation,
        spec=replace(core.spec, activation=core.activation, residual=core.total is not None),
        nodes=UnitNodes(core.conv.name, core.branch.name, core.sum.name, core.tail.name),
        weight_l1=float(weight_of(conv).detach().double().abs().sum()),
    )


def _shortcut(path: Path) -> Shortcut:
    core, norm = path.core, path.norm
    return Shortcut(
        conv=None if core is None else str(core.conv.target),
        bn=None if norm is None else str(norm.target),
        spec=None if core is None else core.spec,
        out=path.out.name,
    )


def _opaque_unit(index: int, branch: OpaqueBranch) -> OpaqueUnit:
    value, total, tail = branch.branch.name, branch.total.name, branch.tail.name
    nodes = UnitNodes(value, value, total, tail)
    return OpaqueUnit(index, branch.name, branch.activation, branch.spec, nodes)


def _branches(
    found: tuple[OpaqueBranch, ...], opaque: list[OpaqueUnit], numbers: list[int]
) -> tuple[Branch, ...]:
    """Returns the branches by their units; one starts where what is inside it starts."""
    branches: list[Branch] = []
    for branch, unit in zip(found, opaque, strict=True):
        starts = [numbers[branch.first]] if branch.first < branch.last else [unit.index]
        starts += [
            b.start for b, o in zip(branches, found, strict=False) if o.total in branch.inside
        ]
        shortcut = None if branch.shortcut is None else branch.shortcut.name
        ends = branch.source.name, shortcut
        branches.append(Branch(min(starts), unit.index + 1, *ends, branch.remains, branch.macs))
    return tuple(branches)


def _segments(
    assembly: Assembly, numbers: list[int], opaque: list[OpaqueUnit]
) -> tuple[Segment, ...]:
    """Returns the maximal runs of linked units, every opaque unit a run of its own."""
    count = len(assembly.cores)
    cuts = [i + 1 for i, linked in enumerate(assembly.linked) if not linked]
    runs = [(a, b) for a, b in pairwise([0, *cuts, count]) if a < b]
    segments = [Segment(numbers[a], numbers[b - 1] + 1) for a, b in runs]
    segments += [Segment(unit.index, unit.index + 1) for unit in opaque]
    return tuple(sorted(segments, key=lambda segment: segment.start))


def _head_pointwise(
    assembly: Assembly, units: list[ConvUnit], residuals: tuple[Residual, ...]
) -> int | None:
    """Returns the last pointwise unit outside residuals that only the global pooling reads."""
    reading = assembly.reading
    for unit, core in zip(reversed(units), reversed(assembly.cores), strict=True):
        users = reading.users(core.tail)
        outside = not any(r.start <= unit.index < r.end for r in residuals)
        if (
            core.spec.pointwise
            and outside
            and len(users) == 1
            and _is_global_average(reading, users[0], core.spec)
        ):
            return unit.index
    return None


def _is_global_average(reading: Reading, node: fx.Node, spec: ConvSpec) -> bool:
    """Whether a node averages over all positions of its input."""
    module = reading.module(node)
    known = (
        isinstance(module, nn.AdaptiveAvgPool2d | nn.AvgPool2d)
        or node.target in _AVERAGES
        or getattr(node.target, "__name__", "") in ("mean", "adaptive_avg_pool2d", "avg_pool2d")
    )
    batch = shape_of(reading.operand(node))[0]
    return known and shape_of(node) in (
        (batch, spec.out_channels),
        (batch, spec.out_channels, 1, 1),
    )
