"""A folded network computes the same, with its values under the same names."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, fx, nn

from tests import nets
from tests.plans import candidates_of
from trt_layermerge.blocks import ConvNorm
from trt_layermerge.importance.folded import folded, folded_block
from trt_layermerge.merge import build_block
from trt_layermerge.merge.segments import record
from trt_layermerge.merge.surgery import block_ports
from trt_layermerge.tracing import trace_network


@pytest.mark.parametrize(
    "factory", [nets.basic_resnet, nets.mobile, nets.repvgg_like, nets.branching]
)
def test_all_values_but_those_of_folded_convolutions_stay(factory: type[nn.Module]) -> None:
    x = nets.example(batch=3, seed=1).double()
    network = trace_network(factory().double(), x[:1]).module
    other = folded(network)
    ours, theirs = (
        record(each, x, [node.name for node in each.graph.nodes]) for each in (network, other)
    )
    norms = [m for m in other.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) < sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    moved = {
        name
        for name, value in ours.items()
        if isinstance(value, Tensor) and not torch.allclose(value, theirs[name], rtol=1e-9)
    }
    nodes = {node.name: node for node in network.graph.nodes}
    followers = {name: [user.op for user in nodes[name].users] for name in moved}
    assert moved and set(map(tuple, followers.values())) == {("call_module",)}
    assert all(
        isinstance(network.get_submodule(str(nodes[name].target)), nn.Conv2d) for name in moved
    )


def test_what_something_else_reads_is_left() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    network = fx.symbolic_trace(Read().eval())
    assert isinstance(folded(network).get_submodule("norm"), nn.BatchNorm2d)


@pytest.mark.parametrize("factory", [nets.basic_resnet, nets.mobile])
def test_a_folded_block_computes_the_same(factory: type[nn.Module]) -> None:
    x = nets.example(batch=3, seed=1).double()
    traced = trace_network(factory().double(), x[:1])
    names = [node.name for node in traced.module.graph.nodes]
    values = record(traced.module, x, names)
    candidates = [c for c in candidates_of(traced.graph, random.Random(0)) if c.convs][::5]
    folds = 0
    for candidate in candidates:
        block = build_block(traced, candidate)
        source = values[block_ports(traced, candidate).source]
        before = {name: value.clone() for name, value in block.state_dict().items()}
        with torch.no_grad():
            expected, found = block(source), folded_block(block)(source)
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12), str(candidate)
        assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())
        units = [m for m in folded_block(block).modules() if isinstance(m, ConvNorm)]
        assert all(unit.norm is None for unit in units)
        folds += len(units)
    assert folds > 5
