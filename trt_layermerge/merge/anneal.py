"""Activations inside blocks that vanish little by little while the network is trained.

An activation σ that is taken out by a plan stays as (1 − λ)·σ(x) + λ·x, with λ from 0 to 1 over
the first part of the training (as in VanillaNet's deep training, Chen et al. 2023; for a ReLU it
is a PReLU whose slope goes to 1, as in Layer Folding, Dror et al. 2021). At λ = 1 it is exactly
the identity, so what is collapsed then is linear.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from trt_layermerge.merge.relax import RelaxedNet
from trt_layermerge.tracing.activations import activation_module


class Annealed(nn.Module):
    """An activation on its way to the identity.

    Attributes:
        linearity: λ, from 0 (the activation) to 1 (the identity).
    """

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = activation_module(activation)
        self.linearity = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Maps a tensor to one of its shape."""
        if self.linearity == 1.0:
            return x
        y: Tensor = self.activation(x).lerp(x, self.linearity)
        return y


def hold_activations(relaxed: RelaxedNet) -> tuple[Annealed, ...]:
    """Puts the activations that blocks remove back, in place, to be annealed; returns them.

    Each stands where it stood. Names and values of the state dict stay as they are.
    """
    return tuple(held for block in relaxed.blocks.values() for held in block.hold(Annealed))


def set_linearity(held: Sequence[Annealed], share: float, over: float) -> None:
    """Sets λ after a share of the training, if it is to be 1 after the share ``over``.

    Args:
        held: What ``hold_activations`` returned; changed in place.
        share: How much of the training is done, from 0 to 1.
        over: Share at which the activations are the identity, above 0.
    """
    for activation in held:
        activation.linearity = min(1.0, share / over)
