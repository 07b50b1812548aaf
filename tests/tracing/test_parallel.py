"""Convolutions side by side that are one: exact on random ones, and only where they are."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests import nets
from tests.tracing import replay
from tests.tracing.test_rewrites import Code
from trt_layermerge.tracing import TracedNetwork, trace_network


def traced(model: nn.Module) -> TracedNetwork:
    """Returns the traced network in float64, which computes what the model does to 1e-12."""
    model = nets.randomise(model).double()
    x = nets.example(size=9).double()
    found = trace_network(model, x)
    with torch.no_grad():
        wanted = model(x)
        assert (found.module(x) - wanted).abs().max() <= 1e-12 * wanted.abs().max()
    replay.assert_true(found, x)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_random_convolutions_beside_each_other_are_one(seed: int) -> None:
    rng = random.Random(seed)
    cut, count = rng.random() < 0.5, rng.choice((2, 3))
    groups = rng.choice((1, 2)) if cut else 1
    outs = [4] * count if cut else [rng.choice((2, 3, 4)) for _ in range(count)]
    geometry = {
        "kernel_size": rng.choice((1, 3, (3, 1))),
        "stride": rng.choice((1, 2)),
        "padding": rng.choice((0, 1)),
        "dilation": rng.choice((1, 2)),
        "groups": groups,
    }
    width = 4 if cut else 4 * count
    convs = [nn.Conv2d(width, out, bias=rng.random() < 0.5, **geometry) for out in outs]

    def forward(m: Code, x: Tensor) -> Tensor:
        x = m.stem(x)
        parts = x.chunk(count, 1) if cut else [x] * count
        joined = torch.cat([m.get_submodule(f"c{i}")(p) for i, p in enumerate(parts)], dim=1)
        return m.norm(joined).relu()

    modules = {f"c{i}": conv for i, conv in enumerate(convs)}
    stem, norm = nn.Conv2d(3, 4 * count, 1), nn.BatchNorm2d(sum(outs))
    graph = traced(Code(forward, stem=stem, norm=norm, **modules)).graph
    unit = graph.units[-1]
    assert len(graph.units) == 2 and graph.branches == ()
    assert unit.spec.groups == (groups * count if cut else 1)
    assert (unit.bn, unit.activation, unit.spec.out_channels) == ("norm", "relu", sum(outs))
    assert [(s.start, s.end) for s in graph.segments] == [(0, 2)]


def in_another_order(m: Code, x: Tensor) -> Tensor:
    left, right = m.stem(x).chunk(2, 1)
    return torch.cat([m.b(right), m.a(left)], 1)


def read_beside(m: Code, x: Tensor) -> Tensor:
    left, right = m.stem(x).chunk(2, 1)
    y = m.a(left)
    return torch.cat([y, m.b(right)], 1) + y.mean(1, keepdim=True)


def twice(m: Code, x: Tensor) -> Tensor:
    left, right = m.stem(x).chunk(2, 1)
    return torch.cat([m.a(left), m.a(right)], 1)


def below_each_other(m: Code, x: Tensor) -> Tensor:
    left, right = m.stem(x).chunk(2, 1)
    return torch.cat([m.a(left), m.b(right)], 2)


def of_several_sizes(m: Code, x: Tensor) -> Tensor:
    left, right = m.stem(x).chunk(2, 1)
    return torch.cat([m.a(left), m.larger(right)], 1)


@pytest.mark.parametrize(
    "forward", [in_another_order, read_beside, twice, below_each_other, of_several_sizes]
)
def test_what_is_not_one_convolution_stays(forward: Callable[..., Tensor]) -> None:
    modules = {name: nn.Conv2d(2, 2, 1) for name in "ab"}
    larger = nn.Conv2d(2, 2, 3, padding=1)
    found = traced(Code(forward, stem=nn.Conv2d(3, 4, 1), larger=larger, **modules))
    kept = [m for m in found.module.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.in_channels < 4 for m in kept)
