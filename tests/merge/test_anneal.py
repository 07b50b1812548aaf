"""Activations on their way out: where they stand, what they compute, and that nothing is left."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests import nets
from tests.plans import composed, fitted
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.merge import (
    Annealed,
    RelaxedNet,
    certify,
    collapse,
    hold_activations,
    relax,
    set_linearity,
)
from trt_layermerge.tracing import trace_network

X = nets.example(size=12, batch=4).double()


def chain(activation: nn.Module | None = None) -> nn.Module:
    """Returns three unpadded convolutions, so that hoisted padding changes nothing."""
    parts = [nn.Conv2d(3, 4, 3), activation or nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()]
    return nets.randomise(nn.Sequential(*parts, nn.Conv2d(4, 2, 3), nn.ReLU())).double()


def one_block(model: nn.Module, start: int, end: int) -> RelaxedNet:
    graph = trace_network(model, X).graph
    candidate = composed(graph, start, end, range(start, end))
    return relax(model, graph, MergePlan.of(graph, [candidate]))


@torch.no_grad()
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish()])
def test_it_starts_as_the_original_and_ends_as_the_relaxed_network(activation: nn.Module) -> None:
    model = chain(activation)
    relaxed = one_block(model, 0, 3)
    linear = relaxed(X)
    held = hold_activations(relaxed)
    assert len(held) == 2
    assert float((relaxed(X) - model(X)).abs().max()) <= 1e-12
    assert float((relaxed(X) - linear).abs().max()) > 1e-3
    set_linearity(held, 0.3, over=0.3)
    assert torch.equal(relaxed(X), linear)


@torch.no_grad()
def test_half_way_a_relu_is_a_leaky_relu_of_half() -> None:
    held = Annealed("relu")
    held.linearity = 0.5
    assert torch.equal(held(X), F.leaky_relu(X, 0.5))
    held.linearity = 1.0
    assert held(X) is X


def test_the_share_of_training_decides() -> None:
    held = (Annealed("relu"), Annealed("silu"))
    found = []
    for share in (0.0, 0.1, 0.2, 0.4, 0.5, 1.0):
        set_linearity(held, share, over=0.4)
        found.append(held[0].linearity)
        assert held[1].linearity == held[0].linearity
    assert found == [0.0, 0.25, 0.5, 1.0, 1.0, 1.0]


@torch.no_grad()
def test_an_activation_behind_an_addition_stays_behind_it() -> None:
    """A residual block with the unit behind it: without padding both are the same function."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.c = nn.Conv2d(3, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.b(torch.relu(self.a(x)))
            return torch.relu(self.c(torch.relu(x + y)))

    model = nets.randomise(Residual()).double()
    relaxed = one_block(model, 0, 3)
    held = hold_activations(relaxed)
    assert len(held) == 2
    assert float((relaxed(X) - model(X)).abs().max()) <= 1e-12


@torch.no_grad()
def test_only_at_the_end_it_merges_exactly() -> None:
    model = nets.basic_resnet()
    graph = trace_network(model, X.float()).graph
    relaxed = relax(model, graph, MergePlan.of(graph, [composed(graph, 1, 3, [1, 2])]))
    names = list(relaxed.state_dict())
    held = hold_activations(relaxed)
    assert held and list(relaxed.state_dict()) == names
    certificates = []
    for share in (0.5, 1.0):
        set_linearity(held, share, over=1.0)
        certificates.append(certify(relaxed, collapse(relaxed), X.float()).ok)
    assert certificates == [False, True]
    assert copy.deepcopy(relaxed)(X.float()).shape == relaxed(X.float()).shape


def test_fitted_blocks_hold_nothing() -> None:
    model = chain()
    graph = trace_network(model, X).graph
    relaxed = relax(model, graph, MergePlan.of(graph, [fitted(graph, 0, 2, 5)]))
    assert hold_activations(relaxed) == ()
