"""A folded network computes the same, with its values under the same names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from tests import nets
from trt_layermerge.importance.folded import folded
from trt_layermerge.importance.segments import record
from trt_layermerge.trace import trace_network


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
