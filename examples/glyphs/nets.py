"""Two small networks for 32x32 RGB glyphs, in the style of the published architectures.

Both start with a stride-2 stem, so the residual stages work on 16x16, 8x8 and 4x4 maps.
"""

from __future__ import annotations

import torch
from torch import nn


def _conv_bn(
    c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside an identity or 1x1 projection shortcut (He et al., 2016)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_bn(c_in, c_out, 3, stride)
        self.relu1 = nn.ReLU()
        self.conv2, self.bn2 = _conv_bn(c_out, c_out, 3)
        self.relu2 = nn.ReLU()
        plain = stride == 1 and c_in == c_out
        self.shortcut = None if plain else nn.Sequential(*_conv_bn(c_in, c_out, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, c_in, H, W)`` to ``(N, c_out, H / stride, W / stride)``."""
        skip = x if self.shortcut is None else self.shortcut(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(x)) + skip)


class ResNet20(nn.Module):
    """Nine basic blocks of 16, 32 and 64 channels: 0.27 M parameters."""

    def __init__(self, classes: int = 36) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_bn(3, 16, 3, 2), nn.ReLU())
        blocks: list[nn.Module] = []
        channels = 16
        for width, first_stride in ((16, 1), (32, 2), (64, 2)):
            for stride in (first_stride, 1, 1):
                blocks.append(BasicBlock(channels, width, stride))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps normalised images ``(N, 3, 32, 32)`` to logits ``(N, classes)``."""
        return self.classifier(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project linearly (Sandler et al., 2018)."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        expand = [] if expansion == 1 else [*_conv_bn(c_in, hidden, 1), nn.ReLU6()]
        depthwise = [*_conv_bn(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()]
        self.layers = nn.Sequential(*expand, *depthwise, *_conv_bn(hidden, c_out, 1))
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, c_in, H, W)`` to ``(N, c_out, H / stride, W / stride)``."""
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2Small(nn.Module):
    """Eleven inverted residuals on 16x16, 8x8 and 4x4 maps: about 0.3 M parameters."""

    def __init__(self, classes: int = 36) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_bn(3, 16, 3, 2), nn.ReLU6())
        blocks: list[nn.Module] = [InvertedResidual(16, 16, 1, 1)]
        channels = 16
        for width, repeats, first_stride in ((24, 3, 1), (32, 4, 2), (64, 3, 2)):
            for i in range(repeats):
                blocks.append(InvertedResidual(channels, width, first_stride if i == 0 else 1, 4))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_conv_bn(channels, 192, 1), nn.ReLU6())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(192, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps normalised images ``(N, 3, 32, 32)`` to logits ``(N, classes)``."""
        return self.classifier(torch.flatten(self.pool(self.head(self.blocks(self.stem(x)))), 1))


def resnet20() -> nn.Module:
    """Returns an untrained ResNet-20 for 36 glyph classes."""
    return ResNet20()


def mobilenet_v2() -> nn.Module:
    """Returns an untrained MobileNetV2-like network for 36 glyph classes."""
    return MobileNetV2Small()
