"""A small U-Net for 48x48 scenes: two convolutions a stage, and skips that concatenate."""

from __future__ import annotations

import torch
from torch import nn


def _stage(c_in: int, c_out: int) -> nn.Sequential:
    """Returns two 3x3 convolutions, each with BN and ReLU."""
    layers: list[nn.Module] = []
    for channels in (c_in, c_out):
        layers += [nn.Conv2d(channels, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out)]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Three scales of 16, 32 and 64 channels (Ronneberger et al., 2015): 0.12 M parameters."""

    def __init__(self, classes: int = 6, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        self.down = nn.ModuleList(map(_stage, (3, *widths[:-1]), widths))
        self.pool = nn.MaxPool2d(2)
        self.rise = nn.Upsample(scale_factor=2, mode="nearest")
        above = widths[:-1]
        self.up = nn.ModuleList(
            _stage(low + skip, skip) for low, skip in zip(widths[:0:-1], above[::-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps normalised images ``(N, 3, H, W)`` to logits of every pixel, H and W by 4."""
        skips: list[torch.Tensor] = []
        for number, stage in enumerate(self.down):
            x = stage(self.pool(x) if number else x)
            skips.append(x)
        for stage, skip in zip(self.up, skips[-2::-1], strict=True):
            x = stage(torch.cat([self.rise(x), skip], 1))
        return self.head(x)


def unet() -> nn.Module:
    """Returns an untrained U-Net for five digits and the ground."""
    return UNet()
