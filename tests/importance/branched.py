"""A small network with what makes values hard to follow."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Branched(nn.Module):
    """A residual, a value that depends on the batch size, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 4, 1)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.relu(self.first(x))
        b = self.second(a) + a
        c = self.third(torch.relu(b)) * self.scale
        return c.reshape(x.size(0), -1), a.mean((2, 3))


NAMES = ("x", "first", "relu", "second", "add", "relu_1", "third", "scale", "size")
"""Its values before the outputs, by name of the traced node."""
