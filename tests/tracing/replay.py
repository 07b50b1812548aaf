"""Ground truth for a layer graph: every claim it makes is computed anew from plain tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.unit import Block, Branch, OpaqueUnit
from trt_layermerge.tracing import TracedNetwork
from trt_layermerge.tracing.activations import activation_module
from trt_layermerge.tracing.forms import weight_of

Values = dict[str, torch.Tensor]


class _Recorder(fx.Interpreter):
    """Keeps every value of a run; ``overrides`` replace values as soon as they are computed."""

    def __init__(self, module: fx.GraphModule, overrides: Values) -> None:
        super().__init__(module)
        self.overrides = overrides
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        value = self.overrides.get(n.name, value)
        self.values[n.name] = value.clone() if isinstance(value, torch.Tensor) else value
        return value


@torch.no_grad()
def run(traced: TracedNetwork, *inputs: torch.Tensor, overrides: Values | None = None) -> Values:
    """Returns every value of the traced network by name."""
    recorder = _Recorder(traced.module, overrides or {})
    recorder.run(*inputs)
    return recorder.values


@torch.no_grad()
def assert_true(traced: TracedNetwork, *inputs: torch.Tensor) -> None:
    """Checks each unit, shortcut and link of a graph to 1e-10 of the largest value, in float64."""
    traced.module.double()
    values = run(traced, *(x.double() for x in inputs))
    graph, module = traced.graph, traced.module
    nodes = {node.name: node for node in module.graph.nodes}
    sources = [nodes[unit.nodes.conv].all_input_nodes[0].name for unit in graph.units]
    for unit, source in zip(graph.units, sources, strict=True):
        if isinstance(unit, OpaqueUnit):
            continue
        names = unit.nodes
        conv = _convolve(module.get_submodule(unit.name), unit.spec, values[source])
        _close(values[names.conv], conv)
        _close(values[names.branch], _normalise(module, unit.bn, conv))
        residual = graph.residual_ending_at.get(unit.index + 1)
        assert unit.spec.residual == (residual is not None)
        total = values[names.branch].clone()
        for shortcut in residual.shortcuts if residual else ():
            value = values[sources[residual.start]]
            if shortcut.conv is not None:
                value = _convolve(module.get_submodule(shortcut.conv), shortcut.spec, value)
            value = _normalise(module, shortcut.bn, value)
            _close(values[shortcut.out], value)
            total += value
        _close(values[names.sum], total)
        act = activation_module(unit.activation) if unit.activation else nn.Identity()
        _close(values[names.out], act(total))
    covered = [i for segment in graph.segments for i in range(segment.start, segment.end)]
    assert covered == list(range(len(graph.units)))
    for segment in graph.segments:
        for i in range(segment.start + 1, segment.end):
            assert torch.equal(values[sources[i]], values[graph.units[i - 1].nodes.out])
    for residual in graph.residuals:
        assert any(s.start <= residual.start < residual.end <= s.end for s in graph.segments)
    opaque = [unit.index for unit in graph.units if isinstance(unit, OpaqueUnit)]
    assert [branch.end - 1 for branch in graph.branches] == opaque
    for branch in (*graph.branches, *graph.wholes):
        _assert_branch(traced, branch, values, *(x.double() for x in inputs))


def _assert_branch(
    traced: TracedNetwork, branch: Branch, values: Values, *inputs: torch.Tensor
) -> None:
    """Checks that a part rests on its source alone and feeds nothing else, a branch's sum beside.

    On other inputs, with the source held, its output is what it was. With its output held, noise
    in the values of its units and of the branch itself changes nothing.
    """
    unit = traced.graph.units[branch.end - 1]
    names, source = unit.nodes, values[branch.source]
    if branch.macs is None:
        _close(values[names.sum], values[names.branch] + values[branch.shortcut])
    else:
        same = source.shape == values[names.out].shape
        assert branch.shortcut == (branch.source if same else None)
    act = activation_module(unit.activation) if unit.activation else nn.Identity()
    _close(values[names.out], act(values[names.sum]))
    (channels, size), (out_channels, out_size) = traced.graph.ends(Block(branch.start, branch.end))
    assert tuple(source.shape[1:]) == (channels, *size)
    assert tuple(values[names.out].shape[1:]) == (out_channels, *out_size)
    others = tuple(x.flip(0, -1) + 1 for x in inputs)
    held = run(traced, *others, overrides={branch.source: values[branch.source]})
    _close(held[names.out], values[names.out])
    final = next(iter(traced.module.graph.find_nodes(op="output"))).name
    inside = [u.nodes.out for u in traced.graph.units[branch.start : branch.end - 1]]
    noise = {name: torch.randn_like(values[name]) for name in (*inside, names.branch)}
    again = run(traced, *inputs, overrides=noise | {names.sum: values[names.sum]})
    assert torch.equal(again[final], values[final]), unit.name


@torch.no_grad()
def assert_private(traced: TracedNetwork, *inputs: torch.Tensor) -> None:
    """Checks that inside segments nothing but the next unit and known shortcuts reads a value.

    Each output is replaced by noise, while the next convolution and the residuals that start there
    are held at their true values: the outputs of the network must not notice.
    """
    traced.module.double()
    inputs = tuple(x.double() for x in inputs)
    values = run(traced, *inputs)
    final = next(iter(traced.module.graph.find_nodes(op="output"))).name
    units = traced.graph.units
    for segment in traced.graph.segments:
        for i in range(segment.start + 1, segment.end):
            held = [units[i].nodes.conv]
            held += [units[r.end - 1].nodes.sum for r in traced.graph.residuals if r.start == i]
            noise = {units[i - 1].nodes.out: torch.randn_like(values[units[i - 1].nodes.out])}
            again = run(traced, *inputs, overrides=noise | {name: values[name] for name in held})
            assert torch.equal(again[final], values[final]), units[i].name


def _convolve(conv: nn.Module, spec: ConvSpec, x: torch.Tensor) -> torch.Tensor:
    top, left, bottom, right = spec.padding
    assert isinstance(conv, nn.Conv2d)
    assert tuple(x.shape[1:]) == (spec.in_channels, spec.height, spec.width)
    weight = weight_of(conv)
    assert weight.shape[0] == spec.out_channels
    assert tuple(weight.shape[2:]) == spec.kernel
    padded = functional.pad(x, (left, right, top, bottom))
    y = functional.conv2d(padded, weight, conv.bias, spec.stride, 0, spec.dilation, spec.groups)
    assert tuple(y.shape[2:]) == spec.out_size
    return y


def _normalise(module: nn.Module, name: str | None, x: torch.Tensor) -> torch.Tensor:
    if name is None:
        return x
    bn = module.get_submodule(name)
    assert isinstance(bn, nn.BatchNorm2d)
    assert bn.running_mean is not None and bn.running_var is not None
    gamma = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    shift = bn.bias - gamma * bn.running_mean
    return x * gamma[:, None, None] + shift[:, None, None]


def _close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    scale = float(expected.abs().max())
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= 1e-10 * max(scale, 1.0)
