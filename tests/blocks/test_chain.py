"""New convolutions in a row: their random and given starts, and what is between them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests import nets
from trt_layermerge.blocks import ConvChain, Start
from trt_layermerge.core.candidate import Candidate, finish, merged_spec
from trt_layermerge.core.unit import Block
from trt_layermerge.tracing import trace


def narrow_candidate() -> Candidate:
    """Returns units 1 and 2 of a chain as two convolutions of half the width between them."""
    graph = trace(nets.plain_chain(), nets.example())
    first, last = (merged_spec(graph, Block(i, i + 1), (i,)) for i in (1, 2))
    inner = replace(first, out_channels=3, activation="relu")
    return finish(graph, Block(1, 3), "fit", (), (inner, replace(last, in_channels=3)))


def test_random_starts_are_drawn_by_the_place_alone() -> None:
    """As in saved runs: N(0, 2 / fan-in), one convolution after the other, seeded by the place."""
    chain = ConvChain(narrow_candidate(), torch.zeros(1))
    generator = torch.Generator().manual_seed(1)
    for body, channels in zip(chain.bodies(), (6, 3), strict=True):
        shape = body.conv.weight.shape
        expected = torch.randn(shape, generator=generator) * (2.0 / (9 * channels)) ** 0.5
        assert torch.equal(body.conv.weight, expected)
    assert not chain.started
    names = [n for n, _ in chain.named_parameters()]
    assert names[:3] == [f"stages.0.body.{n}" for n in ("conv.weight", "norm.weight", "norm.bias")]


@torch.no_grad()
def test_activations_between_convolutions_stay_in_the_merged_row() -> None:
    candidate = narrow_candidate()
    chain = ConvChain(candidate, torch.zeros(1, dtype=torch.float64)).eval()
    x = torch.randn(2, 6, 9, 8, generator=torch.Generator().manual_seed(0)).double()
    merged = chain.collapsed().eval()
    assert [type(m) for m in merged.children()] == [nn.Conv2d, nn.ReLU, nn.Conv2d]
    assert float((merged(x) - chain(x)).abs().max()) <= 1e-12
    linear = nn.Sequential(*[m for m in merged.children() if isinstance(m, nn.Conv2d)])
    assert float((linear(x) - chain(x)).abs().max()) > 0.1


@torch.no_grad()
def test_given_starts_are_cast_once_and_mixed_with_random_ones() -> None:
    candidate = narrow_candidate()
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(5)).double()
    bias = torch.arange(6.0).double()
    chain = ConvChain(candidate, torch.zeros(1), [None, Start(weight, bias)])
    random = ConvChain(candidate, torch.zeros(1))
    first, last = chain.bodies()
    assert torch.equal(first.conv.weight, random.bodies()[0].conv.weight)
    assert first.norm is not None and last.norm is None and last.conv.bias is not None
    assert torch.equal(last.conv.weight, weight.float())
    assert torch.equal(last.conv.bias, bias.float())
    assert torch.equal(chain.prior(), weight.float().double())
    assert float(random.prior().abs().max()) == 0.0  # one of several has no identity
    assert not chain.started  # for the first one is random


def test_as_many_starts_as_convolutions() -> None:
    with pytest.raises(ValueError, match="zip"):
        ConvChain(narrow_candidate(), torch.zeros(1), [None])
