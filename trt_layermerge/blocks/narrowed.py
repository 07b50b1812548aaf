"""The units of a block with fewer channels between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from trt_layermerge.blocks.chain import ConvChain
from trt_layermerge.blocks.composed import unit_copy
from trt_layermerge.blocks.elimination import RIDGE, eliminate
from trt_layermerge.blocks.layers import ConvNorm, Start, conv_norm, kernel_of
from trt_layermerge.blocks.relaxed import Gather
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.tracing import TracedNetwork

Pick: TypeAlias = Callable[[int, Tensor], Tensor]
"""Number of a convolution and the channels that it still puts out → those that it still reads."""


class NarrowChain(ConvChain):
    """A block's units in order, with the channels that are kept between them.

    At the start these are the ones with the largest weights before and behind them. The fit
    ``channels`` chooses them on data, from the last convolution to the first: those that the
    convolution behind them misses most, for what the block should put out, or, further in, for what
    the original convolution puts out of the channels that were kept behind it. What follows a
    choice is fitted anew, from where it was, and scaled to the variance of what is wanted.

    Args:
        traced: The original network; the weights of its units are copied.
        candidate: A convolution for each unit, with as many channels between as are kept.
    """

    fits = ("channels",)

    def __init__(self, traced: TracedNetwork, candidate: Candidate) -> None:
        indices = range(candidate.block.start, candidate.block.end)
        units = [traced.graph.conv_unit(index) for index in indices]
        copies = [unit_copy(traced, index) for index in indices]
        like = copies[0].conv.weight
        specs = (replace(unit.spec.bare(), activation=unit.activation) for unit in units)
        starts = [Start(copied.conv.weight, copied.conv.bias, copied.norm) for copied in copies]
        whole = ConvChain(replace(candidate, convs=tuple(specs)), like, starts).eval()

        def heaviest(number: int, outputs: Tensor) -> Tensor:
            behind = kernel_of(bodies[number]).weight[outputs].square().sum((0, 2, 3))
            before = [kernel_of(body).weight.square().sum((1, 2, 3)) for body in bodies[:number]]
            reach = before[-1] * before[-2] if bodies[number - 1].conv.groups > 1 else before[-1]
            width = candidate.convs[number].in_channels
            return (behind * reach).topk(width).indices.sort().values

        bodies = whole.bodies()
        super().__init__(candidate, like, _sliced(bodies, _choice(bodies, heaviest)))
        self._whole = (whole,)  # in a tuple: its weights are none of this block's

    @property
    def unknowns(self) -> int:
        """Weights of one output channel of the largest convolution that its fit solves for."""
        (whole,) = self._whole
        return max(body.conv.weight[0].numel() for body in whole.bodies()[1:])

    def fit(self, method: str, gather: Gather) -> None:
        """Chooses the channels on data, and fits what reads them."""
        bodies, (whole,) = self.bodies(), self._whole
        like, wide = bodies[0].conv.weight, whole.to(bodies[0].conv.weight).bodies()
        moments = {}

        def needed(number: int, outputs: Tensor) -> Tensor:
            conv = wide[number].conv
            found = gather(whole, wide[number], own=number + 1 < len(wide))
            moments[number] = found
            gram, cross = (part[0] for part in found.system())
            taps = conv.weight[0, 0].numel()
            width = self.candidate.convs[number].in_channels
            return eliminate(gram, cross[:, outputs], width, taps)

        kept = _choice(wide, needed)
        for body, spec, start in zip(
            bodies, self.candidate.convs, _sliced(wide, kept), strict=True
        ):
            body.load_state_dict(conv_norm(spec, start, like).state_dict())
        first = min(moments)
        for number in sorted(moments):
            body = bodies[number]
            if number == first:  # what reaches it are original values
                found = moments[number].narrowed(body.conv, kept[number - 1], kept[number])
            else:
                found = gather(self, body)
            solution = found.solve(RIDGE, kernel_of(body).weight, rescale=True)
            body.install(solution.weight, solution.bias, solution.mean, solution.variance)


def _choice(bodies: Sequence[ConvNorm], pick: Pick) -> list[Tensor]:
    """Returns the channels that each convolution still puts out, chosen from the last to the first.

    A depthwise one hands on those that it reads.
    """
    last = bodies[-1].conv
    kept = [torch.arange(last.out_channels, device=last.weight.device)]
    for number in range(len(bodies) - 1, 0, -1):
        depthwise = bodies[number].conv.groups > 1
        kept.insert(0, kept[0] if depthwise else pick(number, kept[0]))
    return kept


def _sliced(bodies: Sequence[ConvNorm], kept: Sequence[Tensor]) -> list[Start]:
    """Returns the convolutions with these outputs only, and what they still read."""
    starts = []
    for number, (body, outputs) in enumerate(zip(bodies, kept, strict=True)):
        weight, bias = body.conv.weight.detach()[outputs], body.conv.bias
        if number > 0 and body.conv.groups == 1:
            weight = weight[:, kept[number - 1]]
        norm = None if body.norm is None else _sliced_norm(body.norm, outputs)
        starts.append(Start(weight, None if bias is None else bias.detach()[outputs], norm))
    return starts


def _sliced_norm(norm: nn.BatchNorm2d, channels: Tensor) -> nn.BatchNorm2d:
    """Returns the normalisation of some channels."""
    part = nn.BatchNorm2d(len(channels), norm.eps, norm.momentum).to(norm.weight)
    values = norm.state_dict()
    part.load_state_dict({k: v[channels] if v.ndim else v for k, v in values.items()})
    return part
