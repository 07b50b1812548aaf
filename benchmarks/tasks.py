"""Small networks of the other tasks as people write them: detection, segmentation, restoration.

A recipe names each as ``benchmarks.tasks:FUNCTION``. All take three channels; their weights are
random.
"""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F


class Conv(nn.Sequential):
    """Convolution, norm and SiLU, as in YOLO."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        """See the class."""
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.SiLU(inplace=True))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, with or without a shortcut."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        """See the class."""
        super().__init__()
        self.body = nn.Sequential(Conv(channels, channels, 3), Conv(channels, channels, 3))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(N, C, H, W)``."""
        return x + self.body(x) if self.shortcut else self.body(x)


class Csp(nn.Module):
    """A cross-stage part: half of the channels goes on from bottleneck to bottleneck, all meet."""

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool = True) -> None:
        """See the class."""
        super().__init__()
        half = outputs // 2
        self.open = Conv(inputs, outputs)
        self.blocks = nn.ModuleList(Bottleneck(half, shortcut) for _ in range(depth))
        self.close = Conv((2 + depth) * half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(N, outputs, H, W)``."""
        parts = list(self.open(x).chunk(2, 1))
        parts.extend(block(parts[-1]) for block in self.blocks)
        return self.close(torch.cat(parts, 1))


class PoolPyramid(nn.Module):
    """Three max pools in a row, and what stands before each, concatenated."""

    def __init__(self, channels: int) -> None:
        """See the class."""
        super().__init__()
        self.open = Conv(channels, channels // 2)
        self.close = Conv(channels * 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(N, channels, H, W)``."""
        parts = [self.open(x)]
        parts.extend(F.max_pool2d(parts[0], 4 * i + 1, 1, 2 * i) for i in (1, 2, 3))
        return self.close(torch.cat(parts, 1))


class Head(nn.Module):
    """Boxes and classes of one scale, by two towers."""

    def __init__(self, channels: int, boxes: int, classes: int) -> None:
        """See the class."""
        super().__init__()
        self.boxes, self.classes = (
            nn.Sequential(
                Conv(channels, channels, 3), Conv(channels, channels, 3), nn.Conv2d(channels, n, 1)
            )
            for n in (boxes, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(N, boxes + classes, H, W)``."""
        return torch.cat([self.boxes(x), self.classes(x)], 1)


class Yolo(nn.Module):
    """CSP backbone, a path up and a path down (PAN), and a head at strides 8, 16 and 32."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64, 128, 256), classes: int = 80) -> None:
        """Makes the network. ``widths`` are those of strides 2 to 32."""
        super().__init__()
        stem, a, b, c, d = widths
        self.stem = nn.Sequential(Conv(3, stem, 3, 2), Conv(stem, a, 3, 2), Csp(a, a, 1))
        self.low = nn.Sequential(Conv(a, b, 3, 2), Csp(b, b, 2))
        self.middle = nn.Sequential(Conv(b, c, 3, 2), Csp(c, c, 2))
        self.high = nn.Sequential(Conv(c, d, 3, 2), Csp(d, d, 1), PoolPyramid(d))
        self.up = nn.Upsample(scale_factor=2)
        self.up_middle, self.up_low = Csp(d + c, c, 1, False), Csp(c + b, b, 1, False)
        self.down_middle, self.down_high = Conv(b, b, 3, 2), Conv(c, c, 3, 2)
        self.out_middle, self.out_high = Csp(b + c, c, 1, False), Csp(c + d, d, 1, False)
        self.heads = nn.ModuleList(Head(width, 64, classes) for width in (b, c, d))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns three maps ``(N, 64 + classes, H / stride, W / stride)``."""
        low = self.low(self.stem(x))
        middle = self.middle(low)
        high = self.high(middle)
        middle = self.up_middle(torch.cat([self.up(high), middle], 1))
        low = self.up_low(torch.cat([self.up(middle), low], 1))
        middle = self.out_middle(torch.cat([self.down_middle(low), middle], 1))
        high = self.out_high(torch.cat([self.down_high(middle), high], 1))
        return [head(x) for head, x in zip(self.heads, (low, middle, high), strict=True)]


class UNet(nn.Module):
    """Skips by concatenation, transposed convolutions upwards."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64, 128), classes: int = 21) -> None:
        """Makes the network. ``widths`` are those of strides 1, 2, 4 and so on."""
        super().__init__()
        ins = (3, *widths)
        self.down = nn.ModuleList(map(self._double, ins, widths))
        pairs = [*zip(widths[1:], widths, strict=False)][::-1]
        self.grow = nn.ModuleList(nn.ConvTranspose2d(deep, flat, 2, 2) for deep, flat in pairs)
        self.up = nn.ModuleList(self._double(2 * flat, flat) for _, flat in pairs)
        self.out = nn.Conv2d(widths[0], classes, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(N, classes, H, W)``."""
        kept = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        for grow, block, skip in zip(self.grow, self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([skip, grow(x)], 1))
        return self.out(x)


class _Scaled(nn.Module):
    """A branch without norms whose result counts a tenth."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) * 0.1


class Edsr(nn.Module):
    """Super-resolution: scaled residual blocks in a long one, then a pixel shuffle."""

    def __init__(self, channels: int = 32, depth: int = 8, scale: int = 2) -> None:
        """Makes the network."""
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(
            *(_Scaled(channels) for _ in range(depth)), nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.tail = nn.Sequential(
            nn.Conv2d(channels, channels * scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
            nn.Conv2d(channels, 3, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(N, 3, scale · H, scale · W)``."""
        x = self.head(x)
        return self.tail(x + self.body(x))


class DnCnn(nn.Module):
    """Noise removal: a plain chain whose result is taken from the image."""

    def __init__(self, channels: int = 32, depth: int = 12) -> None:
        """Makes the network."""
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        self.noise = nn.Sequential(*layers, nn.Conv2d(channels, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(N, 3, H, W)``."""
        return x - self.noise(x)


class Heatmaps(nn.Module):
    """Key points: a ResNet, three transposed convolutions, a map of each point."""

    def __init__(self, channels: int = 64, points: int = 17) -> None:
        """Makes the network."""
        super().__init__()
        self.backbone = timm.create_model("resnet18", features_only=True, out_indices=(4,))
        layers: list[nn.Module] = []
        for inputs in (512, channels, channels):
            layers += [
                nn.ConvTranspose2d(inputs, channels, 4, 2, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        self.head = nn.Sequential(*layers, nn.Conv2d(channels, points, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``(N, points, H / 4, W / 4)``."""
        return self.head(self.backbone(x)[0])


def ssdlite() -> nn.Module:
    """Returns the backbone of torchvision's SSDLite, which gives six maps by name."""
    detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None
    )
    backbone: nn.Module = detector.backbone
    return backbone
