"""Segments compute, bit for bit, what the whole network does, and nothing more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from tests.importance.branched import NAMES
from trt_layermerge.merge.segments import record, rest_of, segment


def test_record_gives_the_values_of_a_whole_run(network: fx.GraphModule, images: Tensor) -> None:
    values = record(network, images, NAMES)
    own = network.get_submodule
    with torch.no_grad():
        a = torch.relu(own("first")(images))
        b = own("second")(a) + a
    assert set(values) == set(NAMES)
    assert torch.equal(values["x"], images)
    assert torch.equal(values["relu"], a)
    assert torch.equal(values["add"], b)
    assert values["size"] == 10
    assert not values["add"].requires_grad


@pytest.mark.parametrize("name", ["x", "first", "relu", "second", "add", "third"])
def test_the_rest_equals_a_whole_run(network: fx.GraphModule, images: Tensor, name: str) -> None:
    needed = rest_of(network, name).needed
    finish = segment(network, needed | {name}, ("output",))
    values = record(network, images, {*needed, name})
    with torch.no_grad():
        expected = network(images)
    found = finish(values)["output"]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    values[name] = values[name] + 1
    changed = finish(values)["output"]
    assert not torch.equal(changed[0], expected[0])


def test_only_what_depends_is_run(network: fx.GraphModule) -> None:
    rest = rest_of(network, "add")
    assert rest.names == ("relu_1", "third", "mul", "reshape", "output")
    assert rest.needed == {"size", "mean"}  # "scale" is a parameter
    finish = segment(network, rest.needed | {"add"}, ("output",))
    ran = [node.name for node in finish.module.graph.nodes if node.op.startswith("call")]
    assert ran == ["relu_1", "third", "mul", "reshape"]
    with pytest.raises(KeyError):
        rest_of(network, "absent")


def test_the_way_back_ends_at_given_values(network: fx.GraphModule, images: Tensor) -> None:
    found = segment(network, frozenset({"x", "first", "relu", "mean"}), ("add", "relu"))
    assert found.given == ("relu",)
    ran = [node.name for node in found.module.graph.nodes if node.op.startswith("call")]
    assert ran == ["second", "add"]
    values = record(network, images, ("relu", "add"))
    again = found({"relu": values["relu"]})
    assert torch.equal(again["add"], values["add"])
    assert again["relu"] is values["relu"]


def test_what_is_not_given_is_refused(network: fx.GraphModule) -> None:
    with pytest.raises(KeyError, match="the input x is not given"):
        segment(network, frozenset({"second"}), ("add",))
    with pytest.raises(KeyError):
        segment(network, frozenset({"x"}), ("absent",))
    with pytest.raises(KeyError):
        segment(network, frozenset({"relu"}), ("add",))({"second": 1})


def test_identities_are_left_out_under_both_names() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity(), nn.ReLU()).eval()
    network = fx.symbolic_trace(model)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    names = [node.name for node in network.graph.nodes]
    conv, identity, relu = names[1:4]
    values = record(network, x, (conv, identity, relu))
    assert values[conv] is values[identity]
    assert torch.equal(values[relu], values[conv].clamp(min=0))
    behind = segment(network, frozenset({identity}), (relu,))
    assert torch.equal(behind({identity: values[identity]})[relu], values[relu])


class Activated(nn.Module):
    """Activations that may overwrite what they read, and others that must not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.act, self.identity = nn.ReLU6(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        alone = self.act(self.a(self.act(x)))  # not of the input
        twice = self.b(alone)
        total = self.act(twice) + twice  # not of what a residual reads
        row = self.act(total)  # of a sum
        again = self.act(self.act(self.c(row)))  # not of another activation, which is not known new
        return self.act(self.identity(again).flatten(1))  # not of a view


def test_activations_overwrite_what_nothing_else_reads() -> None:
    torch.manual_seed(0)
    model = Activated().eval()
    network = fx.symbolic_trace(model)
    x = 4 * torch.randn(2, 3, 4, 4)
    before = x.clone()
    with torch.no_grad():
        expected = model(x)
    whole = segment(network, frozenset({"x"}), ("output",))
    assert torch.equal(whole({"x": x})["output"], expected)
    assert torch.equal(x, before)
    overwriting = [n for n in whole.module.graph.nodes if str(n.target).startswith("overwriting")]
    assert [node.name for node in overwriting] == ["act_1", "act_3", "act_4"]
    assert all(whole.module.get_submodule(str(node.target)).inplace for node in overwriting)
    assert model.act.inplace is False

    every = tuple(node.name for node in network.graph.nodes)
    kept = segment(network, frozenset({"x"}), every)({"x": x})
    for name in every:  # each on its own may overwrite everything on the way to it
        alone = segment(network, frozenset({"x"}), (name,))({"x": x})[name]
        assert torch.equal(kept[name], alone), name
    behind = segment(network, frozenset({"a"}), ("act_1",))({"a": kept["a"]})
    assert torch.equal(behind["act_1"], kept["act_1"])
    assert torch.equal(kept["a"], model.a(model.act(x)))
