"""Random small networks, planned at random: refused or certified, none wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.nets import randomise
from tests.plans import random_plan
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.merge import certify, collapse, reestimate_bn, relax
from trt_layermerge.tracing import trace

ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.Hardswish, nn.Identity, lambda: nn.ReLU(inplace=True))


def conv(
    rng: random.Random, c_in: int, c_out: int, stride: int = 1, same: bool = False
) -> nn.Module:
    """Returns a convolution of random geometry, and what may follow it; ``same`` keeps the size."""
    kernel = rng.choice((1, 3, 3, 5)), rng.choice((1, 3, 3))
    dilation = rng.choice((1, 1, 2))
    exact = tuple(dilation * (k - 1) // 2 for k in kernel)
    padding = exact if same or rng.random() < 0.8 else (1, 1)
    groups = rng.choice([g for g in (1, 1, 2, c_in) if c_in % g == 0 and c_out % g == 0])
    parts: list[nn.Module] = [
        nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation, groups, rng.random() < 0.5)
    ]
    if rng.random() < 0.7:
        parts.append(nn.BatchNorm2d(c_out))
    if rng.random() < 0.6:
        parts.append(rng.choice(ACTIVATIONS)())
    return nn.Sequential(*parts)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.expand(pooled))


class Writes(nn.Module):
    """Changes its input in place, behind what tracing cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(0.5) if float(x.abs().sum()) >= 0 else x


class Residual(nn.Module):
    """Branches and shortcuts from one value, added or concatenated."""

    def __init__(self, rng: random.Random, channels: int, depth: int) -> None:
        super().__init__()
        stride, c_out = rng.choice((1, 1, 2)), channels if rng.random() < 0.6 else 6
        plain = stride == 1 and c_out == channels
        inner: list[nn.Module] = [conv(rng, channels, c_out, stride, True)]
        for _ in range(rng.randrange(3)):
            inner.append(part(rng, c_out, depth - 1, same=True))
        paths = [nn.Sequential(*inner)]
        for _ in range(rng.choice((1, 1, 2))):
            if plain and rng.random() < 0.6:
                paths.append(rng.choice((nn.Identity(), nn.BatchNorm2d(channels))))
            else:
                size = rng.choice((1, 1, 3))
                path = nn.Conv2d(channels, c_out, size, stride, size // 2)
                paths.append(nn.Sequential(path, nn.BatchNorm2d(c_out)))
        self.paths = nn.ModuleList(paths)
        self.act = rng.choice(ACTIVATIONS)()
        self.joined = conv(rng, 2 * c_out, c_out, same=True) if rng.random() < 0.15 else None
        self.channels = c_out

    def forward(self, x: Tensor) -> Tensor:
        first, *others = [path(x) for path in self.paths]
        total = others[0]
        for other in others[1:]:
            total = total + other
        if self.joined is not None:
            return self.act(self.joined(torch.cat([first, total], 1)))
        return self.act(first + total)


class Same(nn.Module):
    """A residual of one shape around parts that may themselves be residuals."""

    def __init__(self, rng: random.Random, channels: int, depth: int) -> None:
        super().__init__()
        count = rng.randint(1, 3)
        self.parts = nn.Sequential(*(part(rng, channels, depth - 1, True) for _ in range(count)))
        self.again = rng.random() < 0.3

    def forward(self, x: Tensor) -> Tensor:
        first = self.parts[0](x)
        y = self.parts[1:](first) + x
        return y + first if self.again else y  # the second addition overlaps the first in part


def part(rng: random.Random, channels: int, depth: int, same: bool) -> nn.Module:
    """Returns something that keeps the channels, and with ``same`` the size."""
    draw = rng.random()
    if draw < 0.25 and depth > 0:
        return Same(rng, channels, depth)
    if draw < 0.32:
        return Gate(channels)
    if draw < 0.37:
        return Writes()
    return conv(rng, channels, channels, same=same)


class Network(nn.Module):
    """A stem, some parts, and an output that may be nested."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = random.Random(seed)
        channels = 4
        parts: list[nn.Module] = [conv(rng, 3, channels, rng.choice((1, 2)))]
        for _ in range(rng.randint(1, 4)):
            if rng.random() < 0.5:
                block = Residual(rng, channels, 2)
                channels = block.channels
                parts.append(block)
            else:
                parts.append(part(rng, channels, 2, same=False))
        self.parts = nn.Sequential(*parts)
        self.head, self.nested = nn.Linear(channels, 3), rng.random() < 0.2

    def forward(self, x: Tensor) -> object:
        y = self.parts(x)
        logits = self.head(y.mean((2, 3)))
        return {"logits": logits, "map": [y]} if self.nested else logits


def plans(model: nn.Module, graph: LayerGraph, x: Tensor, seed: int) -> Iterator[bool]:
    """Yields, for plans of one network, whether each is certified."""
    offered = enumerate_candidates(graph)
    chosen = [MergePlan.of(graph, []), random_plan(graph, seed)]
    rng = random.Random(seed)
    chosen += [MergePlan.of(graph, [rng.choice(offered)])] if offered else []
    for number, plan in enumerate(chosen):
        relaxed = relax(model, graph, plan)
        if number:
            reestimate_bn(relaxed, [x])
        else:
            torch.testing.assert_close(relaxed(x), model(x), rtol=1e-5, atol=1e-5)
        yield certify(relaxed, collapse(relaxed), x).ok


@torch.no_grad()
def check(seed: int) -> bool:
    """Whether a random network was traced; fails if one of its plans is wrong."""
    model = randomise(Network(seed), seed).eval()
    size = 9 + seed % 7
    x = torch.randn(2, 3, size, size + seed % 3, generator=torch.Generator().manual_seed(seed))
    try:
        model(x.clone())
    except RuntimeError:
        return False  # the map became too small: no network
    try:
        graph = trace(model, x)
    except UnsupportedModelError:
        return False
    assert all(plans(model, graph, x, seed)), f"seed {seed} is not certified"
    return True


@pytest.mark.parametrize("ten", range(10))
def test_random_networks_are_refused_or_certified(ten: int) -> None:
    traced = sum(check(seed) for seed in range(10 * ten, 10 * ten + 10))
    assert traced >= 5
