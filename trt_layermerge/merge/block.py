"""What stands in a block's place: trainable, and linear from its input to its last addition."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.conv import ConvSpec, Pair
from trt_layermerge.core.geometry import ONE, Apply, Close, Open, composition, mergeable
from trt_layermerge.core.unit import Block, Residual, Shortcut
from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.merge.layers import (
    ConvNorm,
    conv_norm_copy,
    identity_norm,
    norm_copy,
    unpadded_conv,
    zero_pad,
)
from trt_layermerge.tracing import TracedNetwork
from trt_layermerge.tracing.activations import activation_module


@dataclass(frozen=True, slots=True)
class Ports:
    """Names of the values of the traced graph between which a block stands.

    Attributes:
        source: Input value of the first unit, which the block reads.
        target: The value that the block's output replaces.
        total: The value after the residual addition that ends with the block, if one does.
        out: The value after the activation at the block's end.
    """

    source: str
    target: str
    total: str
    out: str


class RelaxedBlock(nn.Module):
    """Maps a block's input ``(N, C_in, H, W)`` to its pre-activation output ``(N, C_out, H', W')``.

    Attributes:
        candidate: What it realises.
    """

    def __init__(self, candidate: Candidate) -> None:
        super().__init__()
        self.candidate = candidate

    @property
    def last(self) -> ConvNorm | None:
        """The convolution to whose output only fixed values are added; None if there is none."""
        raise NotImplementedError


class ComposedBlock(RelaxedBlock):
    """The kept units without padding and activation, and the shortcuts inside, aligned to them.

    All zero padding stands at the input. Nothing here is nonlinear in eval mode, but for what
    ``anneal.hold_activations`` puts into ``held``.

    Attributes:
        held: Modules behind steps, by the step's number.
    """

    def __init__(self, traced: TracedNetwork, candidate: Candidate) -> None:
        super().__init__(candidate)
        found = composition(traced.graph, candidate.block, candidate.kept)
        self.steps = found.steps
        self.padding = zero_pad(found.spec.padding) if found.spec else nn.Identity()
        self.units = nn.ModuleDict()
        self.shortcuts = nn.ModuleDict()
        self.held = nn.ModuleDict()
        for step in self.steps:
            if isinstance(step, Apply):
                self.units[_unit_key(step.unit)] = _unit_copy(traced, step.unit)
            elif isinstance(step, Close):
                paths = [_shortcut_copy(traced, s) for s in step.residual.shortcuts]
                self.shortcuts[_residual_key(step.residual)] = nn.ModuleList(paths)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C_in, H, W)`` to ``(N, C_out, H', W')``."""
        x = self.padding(x)
        begun: list[Tensor] = []
        for number, step in enumerate(self.steps):
            if isinstance(step, Open):
                begun.append(x)
            elif isinstance(step, Apply):
                x = self.unit(step.unit)(x)
            else:
                skip = self._shortcut_sum(step, begun.pop())
                x = skip if step.empty else x + skip
            if str(number) in self.held:
                x = self.held[str(number)](x)
        return x

    def unit(self, index: int) -> ConvNorm:
        """Returns a kept unit."""
        unit = self.units[_unit_key(index)]
        assert isinstance(unit, ConvNorm)
        return unit

    def paths(self, residual: Residual) -> list[nn.Module]:
        """Returns the shortcuts of a residual inside the block, in order."""
        paths = self.shortcuts[_residual_key(residual)]
        assert isinstance(paths, nn.ModuleList)
        return list(paths)

    @property
    def last(self) -> ConvNorm | None:
        """The last kept unit; None where a shortcut that computes something follows it."""
        for step in reversed(self.steps):
            if isinstance(step, Apply):
                return self.unit(step.unit)
            if isinstance(step, Close) and step.empty and not _hands_on(step.residual):
                return None
        return None

    def _shortcut_sum(self, step: Close, x: Tensor) -> Tensor:
        """Returns the sum of a residual's shortcuts, of the size that its branch puts out."""
        rows, columns = ((x.shape[2 + a] - step.extent[a]) // step.stride[a] + 1 for a in (0, 1))
        total: Tensor | None = None
        for path, shortcut, (top, left) in zip(
            self.paths(step.residual), step.residual.shortcuts, step.offsets, strict=True
        ):
            height, width = _seen(shortcut, step.stride, rows, columns)
            value = path(x[:, :, top : top + height, left : left + width])
            total = value if total is None else total + value
        assert total is not None
        return total


class FittedBlock(RelaxedBlock):
    """New convolutions in a row, each with a batch normalisation that starts as an identity."""

    def __init__(self, candidate: Candidate, like: Tensor) -> None:
        super().__init__(candidate)
        generator = torch.Generator().manual_seed(candidate.block.start)
        self.stages = nn.ModuleList()
        for number, spec in enumerate(candidate.convs, start=1):
            parts: OrderedDict[str, nn.Module] = OrderedDict(
                pad=zero_pad(spec.padding), body=_new_unit(spec, like, generator)
            )
            if spec.activation is not None and number < len(candidate.convs):
                parts["activation"] = activation_module(spec.activation)
            self.stages.append(nn.Sequential(parts))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C_in, H, W)`` to ``(N, C_out, H', W')``."""
        for stage in self.stages:
            x = stage(x)
        return x

    def bodies(self) -> list[ConvNorm]:
        """Returns the convolutions in order."""
        bodies = [stage.get_submodule("body") for stage in self.stages]
        return [b for b in bodies if isinstance(b, ConvNorm)]

    @property
    def last(self) -> ConvNorm | None:
        """The last convolution."""
        return self.bodies()[-1]


def build_block(traced: TracedNetwork, candidate: Candidate) -> RelaxedBlock:
    """Returns the module of a candidate, with copies of the original weights; traced stays as is.

    Raises:
        UnsupportedModelError: If the candidate cannot be merged exactly.
    """
    reason = mergeable(traced.graph, candidate)
    if reason is not None:
        raise UnsupportedModelError(
            f"the candidate {candidate} cannot be merged: {reason}; leave it out of the plan"
        )
    if candidate.kind in ("compose", "identity"):
        return ComposedBlock(traced, candidate).eval()
    conv = traced.module.get_submodule(traced.graph.units[candidate.block.start].name)
    assert isinstance(conv.weight, Tensor)
    return FittedBlock(candidate, conv.weight).eval()


def block_key(block: Block) -> str:
    """Returns the name of a block's module, such as ``b3_5``."""
    return f"b{block.start}_{block.end}"


def block_ports(traced: TracedNetwork, candidate: Candidate) -> Ports:
    """Returns the values that a candidate's block reads and replaces.

    The block replaces the branch of a residual that began before it and ends with it, and
    everything up to the last addition otherwise. Where nothing remains of a block and no residual
    stays open, its activation goes too.
    """
    graph, block = traced.graph, candidate.block
    first, last = graph.units[block.start].nodes, graph.units[block.end - 1].nodes
    source = next(n for n in traced.module.graph.nodes if n.name == first.conv).all_input_nodes[0]
    if graph.open_residual(block.start, block.end) is not None:
        target = last.branch
    else:
        target = last.sum if candidate.convs else last.out
    return Ports(source.name, target, last.sum, last.out)


def _unit_copy(traced: TracedNetwork, index: int) -> ConvNorm:
    unit = traced.graph.units[index]
    norm = None if unit.bn is None else traced.module.get_submodule(unit.bn)
    return conv_norm_copy(traced.module.get_submodule(unit.name), norm, unit.spec)


def _shortcut_copy(traced: TracedNetwork, shortcut: Shortcut) -> nn.Module:
    """Returns a projection, a batch normalisation, or an identity."""
    norm = None if shortcut.bn is None else traced.module.get_submodule(shortcut.bn)
    if shortcut.conv is not None and shortcut.spec is not None:
        conv = traced.module.get_submodule(shortcut.conv)
        return conv_norm_copy(conv, norm, shortcut.spec)
    return nn.Identity() if norm is None else norm_copy(norm)


def _new_unit(spec: ConvSpec, like: Tensor, generator: torch.Generator) -> ConvNorm:
    """Returns a convolution with weights of He et al. (2015), N(0, 2 / fan-in), and its BN."""
    conv = unpadded_conv(spec, False, like)
    fan_in = conv.weight[0].numel()
    start = torch.randn(conv.weight.shape, generator=generator) * (2.0 / fan_in) ** 0.5
    with torch.no_grad():
        conv.weight.copy_(start)
    return ConvNorm(conv, identity_norm(spec.out_channels, like))


def _seen(shortcut: Shortcut, stride: Pair, rows: int, columns: int) -> Pair:
    """Returns how many rows and columns a shortcut reads to put out ``rows`` × ``columns``."""
    height, width = ONE if shortcut.spec is None else shortcut.spec.extent
    return (rows - 1) * stride[0] + height, (columns - 1) * stride[1] + width


def _hands_on(residual: Residual) -> bool:
    """Whether the shortcuts alone are the identity."""
    return len(residual.shortcuts) == 1 and residual.shortcuts[0].identity


def _unit_key(index: int) -> str:
    return f"u{index}"


def _residual_key(residual: Residual) -> str:
    return f"r{residual.start}_{residual.end}"
