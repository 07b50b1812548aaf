"""The layer graph of a traced network."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import fx, nn
from torch.nn import functional

from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import ConvUnit, Residual, Segment, Shortcut, UnitNodes
from trt_layermerge.tracing.assemble import Assembly, assemble
from trt_layermerge.tracing.barriers import find_barriers
from trt_layermerge.tracing.forms import weight_of
from trt_layermerge.tracing.reading import Reading, shape_of
from trt_layermerge.tracing.residuals import Core, Path

_AVERAGES: set[Any] = {
    functional.avg_pool2d,
    functional.adaptive_avg_pool2d,
    "mean",
}


def build_graph(reading: Reading, input_shape: tuple[int, ...]) -> LayerGraph:
    """Returns the layer graph of a network that was read."""
    assembly = assemble(reading)
    residuals = tuple(
        Residual(*assembly.span(draft), tuple(_shortcut(path) for path in draft.paths))
        for draft in assembly.drafts
    )
    return LayerGraph(
        units=tuple(_unit(reading, i, core) for i, core in enumerate(assembly.cores)),
        segments=_segments(assembly),
        residuals=residuals,
        barriers=find_barriers(reading, assembly),
        input_shape=input_shape,
        head_pointwise=_head_pointwise(reading, assembly, residuals),
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


def _segments(assembly: Assembly) -> tuple[Segment, ...]:
    """Returns the maximal runs of linked units."""
    count = len(assembly.cores)
    cuts = [i + 1 for i, linked in enumerate(assembly.linked) if not linked]
    return tuple(Segment(a, b) for a, b in pairwise([0, *cuts, count]) if a < b)


def _head_pointwise(
    reading: Reading, assembly: Assembly, residuals: tuple[Residual, ...]
) -> int | None:
    """Returns the last pointwise unit outside residuals that only the global pooling reads."""
    for index in reversed(range(len(assembly.cores))):
        core = assembly.cores[index]
        users = reading.users(core.tail)
        outside = not any(r.start <= index < r.end for r in residuals)
        if (
            core.spec.pointwise
            and outside
            and len(users) == 1
            and _is_global_average(reading, users[0], core.spec)
        ):
            return index
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
