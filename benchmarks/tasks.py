"""Small networks for other tasks than classification, in the style of the published ones."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F


class ConvSiLU(nn.Sequential):
    """A convolution with BN and SiLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1) -> None:
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(c_out), nn.SiLU())


class Bottleneck(nn.Module):
    """Two convolutions, with or without a shortcut."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(ConvSiLU(channels, channels), ConvSiLU(channels, channels, 3))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to the same."""
        return x + self.layers(x) if self.shortcut else self.layers(x)


class Csp(nn.Module):
    """Half of the channels through bottlenecks, half past them (Wang et al., 2020)."""

    def __init__(self, c_in: int, c_out: int, depth: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        half = c_out // 2
        self.left, self.right = ConvSiLU(c_in, half), ConvSiLU(c_in, half)
        self.blocks = nn.Sequential(*(Bottleneck(half, shortcut) for _ in range(depth)))
        self.join = ConvSiLU(2 * half, c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, c_in, H, W)`` to ``(N, c_out, H, W)``."""
        return self.join(torch.cat([self.blocks(self.left(x)), self.right(x)], 1))


class Sppf(nn.Module):
    """Maxima over growing surroundings, beside each other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter, self.leave = ConvSiLU(channels, channels // 2), ConvSiLU(2 * channels, channels)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to the same."""
        found = [self.enter(x)]
        for _ in range(3):
            found.append(self.pool(found[-1]))
        return self.leave(torch.cat(found, 1))


class Yolo(nn.Module):
    """A CSP backbone, a PAN neck and three outputs, in the manner of YOLOv5."""

    def __init__(self, width: int = 16, outputs: int = 18) -> None:
        super().__init__()
        a, b, c, d = (width * 2**i for i in range(4))
        self.stem = nn.Sequential(ConvSiLU(3, a, 6, 2), ConvSiLU(a, b, 3, 2), Csp(b, b))
        self.third = nn.Sequential(ConvSiLU(b, c, 3, 2), Csp(c, c, 2))
        self.fourth = nn.Sequential(ConvSiLU(c, d, 3, 2), Csp(d, d, 2))
        self.fifth = nn.Sequential(ConvSiLU(d, 2 * d, 3, 2), Csp(2 * d, 2 * d), Sppf(2 * d))
        self.shrink_high, self.up_high = ConvSiLU(2 * d, d), Csp(2 * d, d, 1, False)
        self.shrink_low, self.up_low = ConvSiLU(d, c), Csp(2 * c, c, 1, False)
        self.sink_low, self.down_low = ConvSiLU(c, c, 3, 2), Csp(2 * c, d, 1, False)
        self.sink_high, self.down_high = ConvSiLU(d, d, 3, 2), Csp(2 * d, 2 * d, 1, False)
        self.heads = nn.ModuleList(nn.Conv2d(channels, outputs, 1) for channels in (c, d, 2 * d))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps images to boxes and classes at an 8th, a 16th and a 32nd of their size."""
        third = self.third(self.stem(x))
        fourth = self.fourth(third)
        high = self.shrink_high(self.fifth(fourth))
        middle = self.up_high(torch.cat([F.interpolate(high, scale_factor=2.0), fourth], 1))
        low = self.shrink_low(middle)
        found = [self.up_low(torch.cat([F.interpolate(low, scale_factor=2.0), third], 1))]
        found.append(self.down_low(torch.cat([self.sink_low(found[0]), low], 1)))
        found.append(self.down_high(torch.cat([self.sink_high(found[1]), high], 1)))
        return [head(y) for head, y in zip(self.heads, found, strict=True)]


class UNet(nn.Module):
    """Skips that concatenate, two convolutions a stage (Ronneberger et al., 2015)."""

    def __init__(self, classes: int = 5, widths: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        self.down = nn.ModuleList(map(self._stage, (3, *widths[:-1]), widths))
        self.up = nn.ModuleList(
            self._stage(low + skip, skip)
            for low, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], classes, 1)

    @staticmethod
    def _stage(c_in: int, c_out: int) -> nn.Module:
        layers: list[nn.Module] = []
        for channels in (c_in, c_out):
            layers += [nn.Conv2d(channels, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images to logits of every pixel."""
        skips: list[Tensor] = []
        for stage in self.down:
            x = stage(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for stage, skip in zip(self.up, skips[-2::-1], strict=True):
            x = stage(torch.cat([F.interpolate(x, scale_factor=2.0), skip], 1))
        return self.head(x)


class Edsr(nn.Module):
    """Residual blocks without norms, scaled by 0.1, and a pixel shuffle (Lim et al., 2017)."""

    def __init__(self, channels: int = 16, blocks: int = 4) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
            )
            for _ in range(blocks)
        )
        self.leave = nn.Conv2d(channels, channels, 3, padding=1)
        self.rise = nn.Sequential(nn.Conv2d(channels, 4 * channels, 3, padding=1))
        self.rise.append(nn.PixelShuffle(2))
        self.last = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images to images of twice the size."""
        x = y = self.enter(x)
        for block in self.blocks:
            y = y + 0.1 * block(y)
        return self.last(self.rise(x + self.leave(y)))


class DnCnn(nn.Module):
    """Convolutions that find the noise, which is taken off (Zhang et al., 2017)."""

    def __init__(self, channels: int = 16, depth: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        self.noise = nn.Sequential(*layers, nn.Conv2d(channels, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps images to images."""
        return x - self.noise(x)


class Heatmap(nn.Module):
    """A small ResNet and transposed convolutions, one map a joint (Xiao et al., 2018)."""

    def __init__(self, joints: int = 7) -> None:
        super().__init__()
        resnet = torchvision.models.resnet18(weights=None)
        self.body = nn.Sequential(*list(resnet.children())[:6])
        layers: list[nn.Module] = []
        for channels in (128, 32):
            layers += [nn.ConvTranspose2d(channels, 32, 4, 2, 1, bias=False)]
            layers += [nn.BatchNorm2d(32), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Conv2d(32, joints, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps images to heat maps of half their size."""
        return self.head(self.body(x))


class SsdBackbone(nn.Module):
    """The backbone of torchvision's SSDLite: six feature maps by name."""

    def __init__(self) -> None:
        super().__init__()
        detection = torchvision.models.detection
        detector = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
        self.backbone = detector.backbone

    def forward(self, x: Tensor) -> dict[str, Any]:
        """Maps images to feature maps."""
        return dict(self.backbone(x))
