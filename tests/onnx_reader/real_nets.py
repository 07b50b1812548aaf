"""Small networks with the structure of those whose ONNX exports people have."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    """Returns convolution, batch normalisation and SiLU, as YOLO has them."""
    layer = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(c_out), nn.SiLU())


class Cross(nn.Module):
    """A cross-stage block of YOLOv8: halves by ``chunk``, each further conv joins the end."""

    def __init__(self, c_in: int, c_out: int, *, shortcut: bool) -> None:
        super().__init__()
        half = c_out // 2
        self.first, self.last = conv(c_in, c_out, 1), conv(3 * half, c_out, 1)
        self.inner, self.shortcut = nn.Sequential(conv(half, half), conv(half, half)), shortcut

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        more = self.inner(parts[-1])
        return self.last(torch.cat([*parts, parts[-1] + more if self.shortcut else more], 1))


class Pyramid(nn.Module):
    """Spatial pyramid pooling, fast: three poolings in a row."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = conv(channels, channels // 2, 1), conv(2 * channels, channels, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.first(x)]
        for _ in range(3):
            maps.append(self.pool(maps[-1]))
        return self.last(torch.cat(maps, 1))


class Detector(nn.Module):
    """CSP, pyramid pooling and PAN with three outputs; decoded as YOLOv5 or YOLOv8 decode them.

    Args:
        head: ``maps`` for the three maps; ``anchors`` for boxes at anchors, all in one tensor;
            ``bins`` for distances as means over bins, and classes beside them.
    """

    def __init__(self, head: str) -> None:
        super().__init__()
        self.head = head
        self.stem = nn.Sequential(conv(3, 8, 3, 2), conv(8, 16, 3, 2), Cross(16, 16, shortcut=True))
        self.third = nn.Sequential(conv(16, 16, 3, 2), Cross(16, 16, shortcut=True))
        self.fourth = nn.Sequential(conv(16, 32, 3, 2), Cross(32, 32, shortcut=True), Pyramid(32))
        self.up, self.lateral = nn.Upsample(scale_factor=2), Cross(48, 16, shortcut=False)
        self.top = Cross(32, 16, shortcut=False)
        self.down, self.middle = conv(16, 16, 3, 2), Cross(32, 16, shortcut=False)
        self.further, self.low = conv(16, 16, 3, 2), Cross(48, 32, shortcut=False)
        channels = {"maps": 7, "anchors": 3 * 7, "bins": 4 * 4 + 2}[head]
        self.predict = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in (16, 16, 32))
        self.register_buffer("anchors", torch.rand(3, 1, 3, 1, 1, 2) * 9)
        self.register_buffer("bins", torch.arange(4.0).reshape(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        second = self.stem(x)
        third = self.third(second)
        fourth = self.fourth(third)
        middle = self.lateral(torch.cat([self.up(fourth), third], 1))
        top = self.top(torch.cat([self.up(middle), second], 1))
        middle = self.middle(torch.cat([self.down(top), middle], 1))
        low = self.low(torch.cat([self.further(middle), fourth], 1))
        maps = [f(y) for f, y in zip(self.predict, (top, middle, low), strict=True)]
        if self.head == "maps":
            return tuple(maps)
        decode = self.at_anchors if self.head == "anchors" else self.by_bins
        return decode(maps)

    def at_anchors(self, maps: list[Tensor]) -> Tensor:
        boxes = []
        for i, y in enumerate(maps):
            n, _, rows, columns = y.shape
            y = y.view(n, 3, 7, rows, columns).permute(0, 1, 3, 4, 2).contiguous()
            place, size, rest = y.sigmoid().split((2, 2, 3), 4)
            down, right = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            grid = torch.stack((right, down), 2).expand(1, 3, rows, columns, 2) - 0.5
            y = torch.cat(
                ((place * 2 + grid) * 4 * 2**i, (size * 2) ** 2 * self.anchors[i], rest), 4
            )
            boxes.append(y.view(n, 3 * rows * columns, 7))
        return torch.cat(boxes, 1)

    def by_bins(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        n = maps[0].shape[0]
        joined = torch.cat([y.view(n, 18, -1) for y in maps], 2)
        distances, classes = joined.split((16, 2), 1)
        spread = distances.view(n, 4, 4, -1).transpose(2, 1).softmax(1)
        near, far = F.conv2d(spread, self.bins).view(n, 4, -1).chunk(2, 1)
        return torch.cat(((far - near) / 2, near + far), 1), classes.sigmoid()


class Squeeze(nn.Module):
    """Squeeze and excitation with a hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return x * gate


class TextDetector(nn.Module):
    """What DB finds text with: a light backbone, maps of all sizes joined, transposed convs."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 8, 12, 16)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.Hardswish(), Squeeze(b)
            )
            for a, b in pairwise(sizes)
        )
        self.same = nn.ModuleList(nn.Conv2d(c, 8, 1, bias=False) for c in sizes[1:])
        self.head = nn.Sequential(
            nn.Conv2d(24, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 6, 2, 2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 1, 3, 2, 1, output_padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for stage, same in zip(self.stages, self.same, strict=True):
            x = stage(x)
            maps.append(same(x))
        size = maps[0].shape[2:]
        joined = [maps[0], *(F.interpolate(m, size=size, mode="nearest") for m in maps[1:])]
        return torch.sigmoid(self.head(torch.cat(joined, 1)))


class SuperResolution(nn.Module):
    """EDSR: residual blocks by a tenth, a long skip, twice the pixels by ``PixelShuffle``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
            for _ in range(3)
        )
        self.up = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.PixelShuffle(2))
        self.register_buffer("mean", torch.tensor([0.45, 0.44, 0.4]).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        first = y = self.first(x - self.mean)
        for block in self.blocks:
            y = y + 0.1 * block(y)
        return self.last(self.up(y + first)) + self.mean


class Segmentation(nn.Module):
    """DeepLab in small: dilated convs and pooled context, resized to the size of the image."""

    def __init__(self, *, corners: bool) -> None:
        super().__init__()
        self.corners = corners
        self.body = nn.Sequential(conv(3, 8, 3, 2), conv(8, 16, 3, 2))
        self.paths = nn.ModuleList(nn.Conv2d(16, 8, 3, padding=d, dilation=d) for d in (1, 2, 3))
        self.context, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x)
        pooled = F.relu(self.context(F.adaptive_avg_pool2d(y, 1)))
        context = self.resized(pooled, y)
        logits = self.head(torch.cat([*(path(y) for path in self.paths), context], 1))
        return self.resized(logits, x), logits

    def resized(self, y: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(
            y, size=like.shape[2:], mode="bilinear", align_corners=self.corners or None
        )


NETS: dict[str, Callable[[], nn.Module]] = {
    "detector": lambda: Detector("maps"),
    "detector at anchors": lambda: Detector("anchors"),
    "detector by bins": lambda: Detector("bins"),
    "text": TextDetector,
    "super-resolution": SuperResolution,
    "segmentation": lambda: Segmentation(corners=False),
    "segmentation by corners": lambda: Segmentation(corners=True),
}
