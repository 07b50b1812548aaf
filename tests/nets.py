"""Tiny networks for exact tests: seeded weights and BN statistics, eval mode, seconds on one core.

Every factory takes a seed and accepts ``example()``; call ``.double()`` on what
comes back for comparisons in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Factory = Callable[..., nn.Module]


def example(channels: int = 3, size: int = 16, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Returns a seeded normal input ``(batch, channels, size, size + 1)``, wider than high."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, size, size + 1, generator=generator)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter and BN statistic a seeded value, in place; returns the model in eval.

    Convolutions get normal weights of variance 1 / fan-in and normal biases of spread 0.3; BN gets
    scales of 0.5 to 1.5 in size, one in four of them negative, shifts and means of spread 0.3, and
    variances of 0.5 to 2. Nothing is left at a value (0, 1) that could hide a mistake.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor, spread: float) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator).to(like) * spread

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator).to(like)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                module.weight.copy_(normal(module.weight, module.weight[0].numel() ** -0.5))
                if module.bias is not None:
                    module.bias.copy_(normal(module.bias, 0.3))
            elif isinstance(module, nn.BatchNorm2d):
                if module.affine:
                    signs = torch.where(uniform(module.weight, 0, 1) < 0.25, -1.0, 1.0)
                    module.weight.copy_(uniform(module.weight, 0.5, 1.5) * signs)
                    module.bias.copy_(normal(module.bias, 0.3))
                if module.running_mean is not None and module.running_var is not None:
                    module.running_mean.copy_(normal(module.running_mean, 0.3))
                    module.running_var.copy_(uniform(module.running_var, 0.5, 2.0))
    return model.eval()


def conv_bn(
    c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Returns a bias-free, centred convolution and its batch normalisation."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(c_out)


class Head(nn.Module):
    """Global average pooling and a classifier of five classes."""

    def __init__(self, channels: int) -> None:
        """Takes the number of channels of the map."""
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, C, H, W)`` to logits ``(N, 5)``."""
        return self.classifier(torch.flatten(self.pool(x), 1))


class Basic(nn.Module):
    """Two 3x3 convolutions beside an identity, or a projection where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        """Takes channels in and out, and the stride of the first convolution."""
        super().__init__()
        self.conv1, self.bn1 = conv_bn(c_in, c_out, 3, stride)
        self.relu1 = nn.ReLU()
        self.conv2, self.bn2 = conv_bn(c_out, c_out, 3)
        self.relu2 = nn.ReLU()
        plain = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if plain else nn.Sequential(*conv_bn(c_in, c_out, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, c_in, H, W)`` to ``(N, c_out, H / stride, W / stride)``."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x))


class Inverted(nn.Module):
    """Expand, filter depthwise, project linearly; added to its input where the shape allows."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, expansion: int = 2) -> None:
        """Takes channels in and out, the stride, and how much wider the middle is."""
        super().__init__()
        hidden = c_in * expansion
        self.layers = nn.Sequential(
            *conv_bn(c_in, hidden, 1),
            nn.ReLU6(),
            *conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(),
            *conv_bn(hidden, c_out, 1),
        )
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, c_in, H, W)`` to ``(N, c_out, H / stride, W / stride)``."""
        return x + self.layers(x) if self.residual else self.layers(x)


class RepVgg(nn.Module):
    """A 3x3 convolution, a 1x1 convolution and, where the shape allows, a BN, all added."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        """Takes channels in and out, and the stride."""
        super().__init__()
        self.dense = nn.Sequential(*conv_bn(c_in, c_out, 3, stride))
        self.point = nn.Sequential(*conv_bn(c_in, c_out, 1, stride))
        plain = stride == 1 and c_in == c_out
        self.skip = nn.BatchNorm2d(c_in) if plain else None
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, c_in, H, W)`` to ``(N, c_out, H / stride, W / stride)``."""
        y = self.dense(x) + self.point(x)
        return self.relu(y if self.skip is None else y + self.skip(x))


class Branching(nn.Module):
    """A stem, two branches that are concatenated, and two convolutions behind them."""

    def __init__(self) -> None:
        """Takes nothing: 3 channels in."""
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8, 3), nn.ReLU())
        self.left = nn.Sequential(*conv_bn(8, 4, 1), nn.ReLU(), *conv_bn(4, 6, 3), nn.ReLU())
        self.right = nn.Sequential(*conv_bn(8, 6, 3), nn.ReLU())
        self.tail = nn.Sequential(*conv_bn(12, 8, 3), nn.ReLU(), *conv_bn(8, 8, 3), nn.ReLU())
        self.head = Head(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, 3, H, W)`` to logits ``(N, 5)``."""
        x = self.stem(x)
        return self.head(self.tail(torch.cat([self.left(x), self.right(x)], 1)))


def plain_chain(seed: int = 0, channels: int = 6, depth: int = 4) -> nn.Module:
    """Returns ``depth`` 3x3 conv + BN + ReLU units and a head; no shortcut. 3 channels in."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [*conv_bn(3 if i == 0 else channels, channels, 3), nn.ReLU()]
    return randomise(nn.Sequential(*layers, Head(channels)), seed)


def basic_resnet(seed: int = 0, channels: int = 6) -> nn.Module:
    """Returns stem, identity block, strided projection block, identity block: 7 units, 3 residuals.

    3 channels in.
    """
    stem = nn.Sequential(*conv_bn(3, channels, 3), nn.ReLU())
    blocks = [
        Basic(channels, channels),
        Basic(channels, 2 * channels, 2),
        Basic(2 * channels, 2 * channels),
    ]
    return randomise(nn.Sequential(stem, *blocks, Head(2 * channels)), seed)


def mobile(seed: int = 0, channels: int = 4) -> nn.Module:
    """Returns a strided stem, three inverted residuals and a pointwise head unit: 11 units.

    The first and the third inverted residual have a shortcut, the second is strided. 3 channels in.
    """
    wide = 2 * channels
    stem = nn.Sequential(*conv_bn(3, channels, 3, 2), nn.ReLU6())
    blocks = [Inverted(channels, channels), Inverted(channels, wide, 2), Inverted(wide, wide)]
    last = nn.Sequential(*conv_bn(wide, 2 * wide, 1), nn.ReLU6())
    return randomise(nn.Sequential(stem, *blocks, last, Head(2 * wide)), seed)


def odd_chain(seed: int = 0) -> nn.Module:
    """Returns a chain of everything unusual that still merges exactly: 6 units, 3 channels in.

    Biases, groups, dilation, rectangular kernels, uneven strides, even kernels, off-centre
    padding, BN with eps 0.01 and 0.1, a unit without BN, one without activation, a leaky slope.
    """
    layers = [
        nn.Conv2d(3, 8, (3, 5), padding=(1, 2), bias=True),
        nn.BatchNorm2d(8, eps=1e-2),
        nn.LeakyReLU(0.2),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False),
        nn.BatchNorm2d(8, eps=1e-1),
        nn.Conv2d(8, 12, (1, 3), stride=(1, 2), padding=(0, 1), groups=2, bias=True),
        nn.SiLU(),
        nn.Conv2d(12, 12, (4, 2), padding=(0, 1), groups=12, bias=True),
        nn.BatchNorm2d(12, eps=1e-3),
        nn.Hardtanh(-0.5, 0.75),
        nn.Conv2d(12, 6, 1, bias=True),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2, padding=(2, 0), bias=False),
        nn.BatchNorm2d(6, eps=1e-2),
        nn.ReLU(),
    ]
    return randomise(nn.Sequential(*layers, Head(6)), seed)


def repvgg_like(seed: int = 0, channels: int = 6) -> nn.Module:
    """Returns three multi-branch blocks: one strided, two with a BN shortcut too. 3 channels in."""
    blocks = [RepVgg(3, channels, 2), RepVgg(channels, channels), RepVgg(channels, channels)]
    return randomise(nn.Sequential(*blocks, Head(channels)), seed)


def branching(seed: int = 0) -> nn.Module:
    """Returns a network with a concatenation in the middle: 6 units. 3 channels in."""
    return randomise(Branching(), seed)


FACTORIES: dict[str, Factory] = {
    "plain_chain": plain_chain,
    "basic_resnet": basic_resnet,
    "mobile": mobile,
    "odd_chain": odd_chain,
    "repvgg_like": repvgg_like,
    "branching": branching,
}
"""All of them by name, for parametrised tests."""
