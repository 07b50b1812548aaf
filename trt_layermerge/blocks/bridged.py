"""Two units with the group normalisation between them taken out, and a new one behind.

What an embedding e = V·f + c (f of the input of a linear layer) adds to every position between the
units goes through the second one. Nothing is padded there, so it stays the same everywhere:

    W2 * (x + e) = W2 * x + S·e        S[o, c] = Σ_kl W2[o, c, k, l]        V' = S·V    c' = S·c
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trt_layermerge.blocks.algebra import Kernel, expand_groups
from trt_layermerge.blocks.composed import ComposedBlock
from trt_layermerge.blocks.layers import conv_of, kernel_of
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.tracing import TracedNetwork


class NormedConv(nn.Module):
    """A convolution, plus one number a channel that a linear layer puts out, normalised."""

    def __init__(self, conv: nn.Module, linear: nn.Linear | None, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.conv, self.linear, self.norm = conv, linear, norm

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        """Maps ``(N, C_in, H, W)`` and ``(N, F)`` to ``(N, C_out, H', W')``."""
        normed: Tensor = self.norm(_plus(self.conv(x), self.linear, features))
        return normed


class BridgedBlock(ComposedBlock):
    """The kept units of a bridge, what is added between them, and a fresh normalisation.

    Args:
        traced: The original network; its weights are copied, but the normalisation starts anew.
        candidate: Which of the two units are kept, one at least.
    """

    def __init__(self, traced: TracedNetwork, candidate: Candidate) -> None:
        super().__init__(traced, candidate)
        bridge = traced.graph.bridge_at(candidate.block)
        assert bridge is not None and candidate.kept
        norm, like = traced.module.get_submodule(bridge.norm), next(self.parameters())
        assert isinstance(norm, nn.GroupNorm)
        channels = candidate.convs[0].out_channels
        self.norm = nn.GroupNorm(
            norm.num_groups, channels, norm.eps, device=like.device, dtype=like.dtype
        )
        self.linear: nn.Linear | None = None
        if bridge.linear is not None:
            linear = copy.deepcopy(traced.module.get_submodule(bridge.linear))
            assert isinstance(linear, nn.Linear)
            self.linear = linear
        self._first, self._second = (
            index if index in candidate.kept else None for index in (bridge.start, bridge.start + 1)
        )

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        """Maps ``(N, C_in, H, W)`` and ``(N, F)`` to ``(N, C_out, H', W')``."""
        x = self.padding(x)
        if self._first is not None:
            x = self.unit(self._first)(x)
        x = _plus(x, self.linear, features)
        if self._second is not None:
            x = self.unit(self._second)(x)
        normed: Tensor = self.norm(x)
        return normed

    @property
    def last(self) -> None:
        """Nothing that could be fitted: a normalisation stands behind it."""
        return None

    def kernel(self) -> Kernel | None:
        """Returns None: with its normalisation, the block is no single convolution."""
        return None

    def collapsed(self) -> nn.Module:
        """Returns the merged convolution with linear layer and normalisation behind it."""
        kernel, like = super().kernel(), next(self.parameters())
        assert kernel is not None
        conv = conv_of(kernel, self.candidate.convs[0].padding, like)
        return NormedConv(conv, self._pushed(), copy.deepcopy(self.norm))

    @torch.no_grad()
    def _pushed(self) -> nn.Linear | None:
        """Returns the linear layer with the second unit behind it."""
        if self.linear is None or self._second is None:
            return copy.deepcopy(self.linear)
        sums = expand_groups(kernel_of(self.unit(self._second)), 1).weight.sum((2, 3))
        old = self.linear
        new = nn.Linear(
            old.in_features, len(sums), device=old.weight.device, dtype=old.weight.dtype
        )
        new.weight.copy_(sums @ old.weight.double())
        new.bias.zero_() if old.bias is None else new.bias.copy_(sums @ old.bias.double())
        return new


def _plus(x: Tensor, linear: nn.Linear | None, features: Tensor | None) -> Tensor:
    return x if linear is None else x + linear(features)[:, :, None, None]
