"""Code that asks for shapes is followed as the example input says, and nothing else is."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests import nets
from tests.tracing import replay
from tests.tracing.test_barriers import Forward, Net
from trt_layermerge.tracing import TracedNetwork, trace_network


class Step(nn.Module):
    """A submodule with any forward."""

    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def chunks(x: Tensor) -> Tensor:
    first, *rest = list(x.chunk(4, 1))
    return torch.cat([*rest, first], 1)


def splits(x: Tensor) -> Tensor:
    found = x.split([1, 3], dim=1)
    assert len(found) == 2
    return torch.cat([part * (i + 1) for i, part in enumerate(found)], 1)


def asserted(x: Tensor) -> Tensor:
    assert x.shape[1] == 4 and x.ndim == 4, f"{x.shape} has other channels"
    return x if x.dtype != torch.bfloat16 else x.float()


def small(x: Tensor) -> Tensor:
    if x.shape[-2] < 10 and x.size(-1) < 10:
        return functional.interpolate(x, size=(10, 10))
    return x


def padded(x: Tensor) -> Tensor:
    rows = math.ceil(x.shape[2] / 3) * 3 - x.shape[2]
    return functional.pad(x, (0, 0, 0, rows)) if rows > 0 else x


def windows(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    assert height % 2 == 0
    x = x.reshape(batch, channels, height // 2, 2, width)
    return sum(x[:, :, :, i] for i in range(x.shape[3]))


def counted(x: Tensor) -> Tensor:
    return x + torch.arange(x.shape[3]) if x.shape[0] > 0 else x


STEPS = [chunks, splits, asserted, small, padded, windows, counted]


def traced_with(step: Callable[[Tensor], Tensor]) -> tuple[nn.Module, TracedNetwork]:
    forward: Forward = lambda m, x: m.c(m.step(m.b(m.a(x))))  # noqa: E731
    model = nets.randomise(Net(forward, step=Step(step))).eval()
    return model, trace_network(model, nets.example(size=8))


@pytest.mark.parametrize("step", STEPS)
@torch.no_grad()
def test_shapes_are_known(step: Callable[[Tensor], Tensor]) -> None:
    model, traced = traced_with(step)
    assert not [n for n in traced.module.graph.nodes if n.target == "step"]
    assert not any("cannot be traced" in b.reason for b in traced.graph.barriers)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 8, 9)
        assert torch.equal(traced.module(x), model(x))
    replay.assert_true(traced, nets.example(size=8, seed=1))


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x if x.mean() > 0 else -x,
        lambda x: x * int(x.abs().max() + 1),
        lambda x: x * len(x.nonzero()),
        lambda x: x * 2 if x.max().item() > 0 else x,
        lambda x: sum(x.flatten().tolist()[:2]) + x,
    ],
)
@torch.no_grad()
def test_contents_are_not(step: Callable[[Tensor], Tensor]) -> None:
    model, traced = traced_with(step)
    assert [n for n in traced.module.graph.nodes if n.target == "step"]
    for scale in (1.0, -3.0):
        x = scale * nets.example(size=8, seed=4)
        assert torch.equal(traced.module(x), model(x))


@pytest.mark.parametrize(
    "step",
    [
        lambda x: torch.cat([x[i : i + 1] * (i + 1) for i in range(x.shape[0])]),
        lambda x: x + torch.arange(int(x.shape[0]))[:, None, None, None],
        lambda x: x * 2 if len(x.shape) == 4 and x.shape[0] > 3 else x,
    ],
)
@torch.no_grad()
def test_the_size_of_a_batch_is_not_fixed(step: Callable[[Tensor], Tensor]) -> None:
    model, traced = traced_with(step)
    for batch in (1, 2, 4):
        x = torch.randn(batch, 3, 8, 9)
        assert torch.equal(traced.module(x), model(x))


class Remembers(nn.Module):
    """Keeps what it saw, and cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(type(x).__name__)
        if not isinstance(x, Tensor):
            raise TypeError("no tensor")
        return x.abs()


@torch.no_grad()
def test_asking_leaves_opaque_modules_as_they_are() -> None:
    forward: Forward = lambda m, x: m.c(m.step(m.block(m.b(m.a(x)))))  # noqa: E731
    model = Net(forward, block=Remembers(), step=Step(chunks))
    traced = trace_network(nets.randomise(model).eval(), nets.example(size=8))
    assert [n.target for n in traced.module.graph.nodes if n.target in ("block", "step")] == [
        "block"
    ]
    seen = traced.module.get_submodule("block").seen
    assert "Tensor" in seen and "FakeTensor" not in seen


class Timed(nn.Module):
    """Takes a time step as a number or as a tensor, as diffusion networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, step: Tensor | int) -> Tensor:
        if not torch.is_tensor(step):
            step = torch.tensor([step], device=x.device)
        return self.conv(x) * step.to(x.dtype).reshape(-1, 1, 1, 1)


@torch.no_grad()
def test_an_input_is_known_to_be_a_tensor() -> None:
    plain, model = torch.is_tensor, Timed().eval()
    traced = trace_network(model, (torch.zeros(1, 3, 8, 8), torch.tensor([2])))
    assert torch.is_tensor is plain
    batch = torch.randn(2, 3, 8, 8), torch.tensor([3, 5])
    assert torch.equal(traced.module(*batch), model(*batch))


@torch.no_grad()
@pytest.mark.parametrize(("scale", "units"), [(1.0, 3), (1, 3), (2.0, 4)])
def test_a_scale_of_one_is_nothing(scale: float, units: int) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.a(x)
        z = (y + m.b(m.norm(y))) / scale
        return m.c(z) + z

    model = nets.randomise(Net(forward, norm=nn.GroupNorm(2, 4))).eval()
    graph = trace_network(model, nets.example(size=8)).graph
    assert len(graph.conv_units) == units
