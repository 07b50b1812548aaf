"""The U-Net of denoising diffusion (Ho, Jain, Abbeel, NeurIPS 2020), small: noise from an image.

Residual blocks of group normalisation, SiLU and two convolutions, the time step added between them;
attention at one level; a strided convolution down, a doubled map and a convolution up; skips that
are concatenated. Names follow diffusers' ``UNet2DModel``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time step, and two layers on top of them."""

    def __init__(self, channels: int, features: int) -> None:
        """Takes the number of waves, and of features that come out."""
        super().__init__()
        half = channels // 2
        self.register_buffer("waves", torch.exp(-math.log(1e4) / half * torch.arange(half)))
        self.linear_1 = nn.Linear(channels, features)
        self.linear_2 = nn.Linear(features, features)

    def forward(self, timestep: Tensor) -> Tensor:
        """Maps steps ``(N,)`` to features ``(N, F)``."""
        angles = timestep.to(self.waves.dtype)[:, None] * self.waves[None]
        waves = torch.cat([angles.sin(), angles.cos()], 1)
        return self.linear_2(F.silu(self.linear_1(waves)))


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, plus the time; norm, SiLU, dropout, conv; beside a shortcut."""

    def __init__(self, c_in: int, c_out: int, features: int, groups: int, dropout: float) -> None:
        """Takes channels in and out, features of the time, groups of the norms, and dropout."""
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(features, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Maps ``(N, c_in, H, W)`` and ``(N, F)`` to ``(N, c_out, H, W)``."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + self.time_emb_proj(F.silu(time))[:, :, None, None]
        y = self.conv2(self.dropout(F.silu(self.norm2(y))))
        return self.conv_shortcut(x) + y


class Attention(nn.Module):
    """Attention of every position to every other, one head, beside its input."""

    def __init__(self, channels: int, groups: int) -> None:
        """Takes the number of channels, and groups of the norm."""
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to the same shape."""
        query, key, value = self.to_qkv(self.group_norm(x).flatten(2).transpose(1, 2)).chunk(3, 2)
        weights = (query @ key.transpose(1, 2) * query.shape[2] ** -0.5).softmax(2)
        return x + self.to_out(weights @ value).transpose(1, 2).reshape(x.shape)


class Downsample(nn.Module):
    """A strided convolution; one row and one column of zeros at the end."""

    def __init__(self, channels: int) -> None:
        """Takes the number of channels."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to ``(N, C, H / 2, W / 2)``."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Every pixel doubled, and a convolution."""

    def __init__(self, channels: int) -> None:
        """Takes the number of channels."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to ``(N, C, 2H, 2W)``."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """Predicts the noise in an image at a time step.

    Args:
        channels: Of the image.
        widths: Channels of each level, the finest first; each level halves the map.
        attention: Which levels have attention.
        layers: Residual blocks of a level on the way down; one more on the way up.
        groups: Of every group normalisation.
        dropout: Share of values dropped in training.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (32, 64),
        attention: Sequence[int] = (1,),
        layers: int = 2,
        groups: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        features = 4 * widths[0]
        self.time_embedding = TimeEmbedding(widths[0], features)
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        skips, width = [widths[0]], widths[0]
        block = lambda a, b: ResnetBlock(a, b, features, groups, dropout)  # noqa: E731
        attend = lambda level, c: Attention(c, groups) if level in attention else nn.Identity()  # noqa: E731
        last = len(widths) - 1
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, wide in enumerate(widths):
            for _ in range(layers):
                self.down.append(nn.ModuleList([block(width, wide), attend(level, wide)]))
                width = wide
                skips.append(width)
            if level < last:
                self.down.append(Downsample(width))
                skips.append(width)
        self.mid = nn.ModuleList(
            [block(width, width), Attention(width, groups), block(width, width)]
        )
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(layers + 1):
                self.up.append(
                    nn.ModuleList([block(width + skips.pop(), wide), attend(level, wide)])
                )
                width = wide
            if level > 0:
                self.up.append(Upsample(width))
        self.conv_norm_out = nn.GroupNorm(groups, width)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Maps images ``(N, C, H, W)`` and steps ``(N,)`` to noise ``(N, C, H, W)``."""
        time = self.time_embedding(timestep)
        x = self.conv_in(sample)
        skips = [x]
        for stage in self.down:
            x = stage(x) if isinstance(stage, Downsample) else stage[1](stage[0](x, time))
            skips.append(x)
        x = self.mid[2](self.mid[1](self.mid[0](x, time)), time)
        for stage in self.up:
            if isinstance(stage, Upsample):
                x = stage(x)
            else:
                x = stage[1](stage[0](torch.cat([x, skips.pop()], 1), time))
        return self.conv_out(F.silu(self.conv_norm_out(x)))
