"""New convolutions in a row in a block's place, activations between them where they are wanted."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trt_layermerge.blocks.layers import (
    ConvNorm,
    Start,
    conv_norm,
    conv_of,
    identity_norm,
    kernel_of,
    unpadded_conv,
    zero_pad,
)
from trt_layermerge.blocks.relaxed import RelaxedBlock
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.tracing.activations import activation_module


class ConvChain(RelaxedBlock):
    """The convolutions of a candidate, each with what its start says behind it.

    Args:
        candidate: Every conv but the last has its activation, if any, behind it.
        like: A tensor whose type and device the parameters get.
        starts: What each convolution starts with. Those of None, or all where nothing is given,
            are drawn at random by the block's place, and get a batch normalisation that starts as
            an identity.

    Raises:
        ValueError: If starts are given for another number of convolutions, or of other shapes.
    """

    def __init__(
        self, candidate: Candidate, like: Tensor, starts: Sequence[Start | None] = ()
    ) -> None:
        super().__init__(candidate)
        generator = torch.Generator().manual_seed(candidate.block.start)
        starts = starts or [None] * len(candidate.convs)
        self._starts = [start is not None for start in starts]
        self.started = all(self._starts)
        self.stages = nn.ModuleList()
        for number, (spec, start) in enumerate(zip(candidate.convs, starts, strict=True), start=1):
            body = (
                _random_unit(spec, like, generator)
                if start is None
                else conv_norm(spec, start, like)
            )
            parts: OrderedDict[str, nn.Module] = OrderedDict(pad=zero_pad(spec.padding), body=body)
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
    def last(self) -> ConvNorm:
        """The last convolution."""
        return self.bodies()[-1]

    def collapsed(self) -> nn.Module:
        """Returns the convolution, or a row of them with their activations between."""
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        stages = zip(self.stages, self.bodies(), self.candidate.convs, strict=True)
        for number, (stage, body, spec) in enumerate(stages):
            parts[f"conv{number}"] = conv_of(kernel_of(body), spec.padding, body.conv.weight)
            activation = dict(stage.named_children()).get("activation")
            if activation is not None:
                parts[f"activation{number}"] = copy.deepcopy(activation)
        return parts["conv0"] if len(parts) == 1 else nn.Sequential(parts)

    def prior(self) -> Tensor:
        """Returns the weights that the last convolution was given.

        Of a single new convolution without a start they are the identity, where its geometry
        allows one; zero otherwise.
        """
        if self._starts[-1]:
            return super().prior()
        weight, spec = self.last.conv.weight, self.candidate.convs[-1]
        start = torch.zeros_like(weight, dtype=torch.float64)
        tap = (spec.padding[0] // spec.dilation[0], spec.padding[1] // spec.dilation[1])
        whole = all(p % d == 0 for p, d in zip(spec.padding, spec.dilation * 2, strict=True))
        inside = tap[0] < spec.kernel[0] and tap[1] < spec.kernel[1]
        square = spec.in_channels == spec.out_channels
        if len(self.stages) == 1 and square and whole and inside:
            channels = torch.arange(spec.out_channels)
            start[channels, channels % start.shape[1], tap[0], tap[1]] = 1.0
        return start


def _random_unit(spec: ConvSpec, like: Tensor, generator: torch.Generator) -> ConvNorm:
    """Returns a convolution with weights of He et al. (2015), N(0, 2 / fan-in), and its BN."""
    conv = unpadded_conv(spec, False, like)
    fan_in = conv.weight[0].numel()
    start = torch.randn(conv.weight.shape, generator=generator) * (2.0 / fan_in) ** 0.5
    with torch.no_grad():
        conv.weight.copy_(start)
    return ConvNorm(conv, identity_norm(spec.out_channels, like))
