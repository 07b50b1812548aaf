"""Whatever does not fit cuts the network, with a reason, and is never merged wrongly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tests import nets
from tests.tracing import replay
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Branch
from trt_layermerge.merge import relax
from trt_layermerge.tracing import TracedNetwork, trace_network

Tensor = torch.Tensor
Forward = Callable[..., Tensor]


class Net(nn.Module):
    """Four 3x3 convolutions of four channels with any forward."""

    def __init__(self, forward: Forward, **modules: nn.Module) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b, self.c, self.d = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        for name, module in modules.items():
            self.add_module(name, module)
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def check(forward: Forward, **modules: nn.Module) -> LayerGraph:
    traced = trace_network(nets.randomise(Net(forward, **modules)), nets.example(size=8))
    return check_traced(traced)


def check_traced(traced: TracedNetwork) -> LayerGraph:
    replay.assert_true(traced, nets.example(size=8, seed=1))
    replay.assert_private(traced, nets.example(size=8))
    return traced.graph


def spans(graph: LayerGraph) -> list[tuple[int, int]]:
    return [(s.start, s.end) for s in graph.segments]


def reasons(graph: LayerGraph) -> dict[str, str]:
    return {barrier.node: barrier.reason for barrier in graph.barriers}


def test_squeeze_and_excitation() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        gate = m.up(m.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return m.b(x * gate)

    graph = check(forward, down=nn.Conv2d(4, 2, 1), up=nn.Conv2d(2, 4, 1))
    assert [u.name for u in graph.units] == ["a", "down", "up", "mul", "b"]
    assert spans(graph) == [(0, 1), (1, 3), (3, 4), (4, 5)]
    assert graph.units[2].activation == "sigmoid"
    assert graph.head_pointwise is None
    assert "squeeze-and-excitation" in reasons(graph)["mul"]


def test_shared_convolution_is_no_unit() -> None:
    graph = check(lambda m, x: m.b(m.b(m.a(x))))
    assert [u.name for u in graph.units] == ["a"]
    assert "more than one place" in reasons(graph)["b"]
    assert "more than one place" in reasons(graph)["b_1"]


def test_shared_weight_is_no_unit() -> None:
    model = Net(lambda m, x: m.d(m.c(m.b(m.a(x)))))
    model.c.weight = model.b.weight
    graph = check_traced(trace_network(nets.randomise(model), nets.example(size=8)))
    assert [u.name for u in graph.units] == ["a", "d"]
    assert set(reasons(graph)) == {"b", "c"}


def test_weight_read_by_a_function_is_no_unit() -> None:
    graph = check(lambda m, x: functional.conv2d(m.b(m.a(x)), m.b.weight, padding=1))
    assert [u.name for u in graph.units] == ["a"]
    assert "more than one place" in reasons(graph)["b"]


def test_shared_normalisation_stays_outside() -> None:
    graph = check(
        lambda m, x: m.b(m.bn(m.b2(m.bn(m.a(x))))), bn=nn.BatchNorm2d(4), b2=nn.Conv2d(4, 4, 1)
    )
    assert [u.bn for u in graph.units] == [None, None, None]
    assert spans(graph) == [(0, 1), (1, 2), (2, 3)]
    assert "more than one place" in reasons(graph)["bn"]


def test_shared_activation_is_fine() -> None:
    graph = check(lambda m, x: m.act(m.b(m.act(m.a(x)))), act=nn.ReLU(inplace=True))
    assert spans(graph) == [(0, 2)]
    assert [u.activation for u in graph.units] == ["relu", "relu"]


def test_activation_before_the_addition() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        return x + m.c(m.b(x).relu()).relu()

    graph = check(forward)
    assert graph.residuals == ()
    assert spans(graph) == [(0, 1), (1, 3), (3, 4)]
    assert [(b.start, b.end) for b in graph.branches] == [(1, 4)]
    assert "activation" in reasons(graph)["add"]


def test_addition_of_different_sources() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.b(y) + m.c(y.relu())

    graph = check(forward)
    assert graph.residuals == ()
    assert "same value" in reasons(graph)["add"]


def test_scaled_addition() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        return torch.add(x, m.b(x), alpha=2)

    graph = check(forward)
    assert graph.residuals == () and spans(graph) == [(0, 1), (1, 2), (2, 3)]
    assert not any(u.spec.residual for u in graph.conv_units)


def test_addition_of_a_smaller_map() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.b(x) + x.mean((2, 3), keepdim=True)

    assert check(forward).residuals == ()


def test_value_added_to_itself() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.b(m.a(x))
        return y + y

    graph = check(forward)
    assert graph.residuals == ()
    assert "itself" in reasons(graph)["add"]


def test_barrier_inside_a_branch_gives_up_the_residual() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        y = functional.max_pool2d(m.b(x), 3, 1, 1)
        return torch.relu(x + m.c(y))

    graph = check(forward)
    assert graph.residuals == ()
    assert spans(graph) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert "pooling" in reasons(graph)["max_pool2d"]
    assert [u.activation for u in graph.units] == [None, None, None, "relu"]


def test_giving_up_a_residual_frees_its_projection() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        skip = m.d(x)
        return skip + m.c(m.b(x).abs())

    graph = check(forward)
    assert [u.name for u in graph.units] == ["a", "d", "b", "c", "add"]
    assert graph.residuals == ()
    assert graph.branches == (Branch(1, 5, "a", "d", (graph.units[1].spec,)),)


def test_overlapping_shortcuts_cut_each_other() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        y = m.b(x)
        z = m.c(y) + x
        return m.d(z) + y

    graph = check(forward)
    assert graph.residuals == ()
    assert spans(graph) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert [(b.start, b.end, b.shortcut) for b in graph.branches] == [(1, 5, "b")]
    assert "overlaps" in reasons(graph)["add_1"]


def test_shortcut_beyond_the_branch() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.q(m.p(x)) + m.b(x)

    graph = check(forward, p=nn.Conv2d(4, 4, 1), q=nn.Conv2d(4, 4, 1))
    assert graph.residuals == ()
    assert "pixels" in reasons(graph)["add"]


def test_inner_value_read_elsewhere() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.b(m.a(x)).relu()
        y = m.c(x)
        return torch.cat([m.d(y), y], 1)

    graph = check(forward)
    assert spans(graph) == [(0, 3), (3, 4), (4, 5)]
    assert "concatenation" in reasons(graph)["cat"]


@pytest.mark.parametrize(
    ("module", "word"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode='reflect'"),
        (nn.ConvTranspose2d(4, 4, 3, padding=1), "ConvTranspose2d"),
        (parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), "parametris"),
        (
            type(
                "Scaled",
                (nn.Conv2d,),
                {"forward": lambda s, x: s._conv_forward(2 * x, s.weight, s.bias)},
            )(4, 4, 1),
            "Scaled",
        ),
    ],
)
def test_convolutions_that_cannot_be_units(module: nn.Module, word: str) -> None:
    graph = check(lambda m, x: m.b(m.layer(m.a(x))), layer=module)
    assert [u.name for u in graph.units] == ["a", "b"]
    assert spans(graph) == [(0, 1), (1, 2)]
    assert list(reasons(graph)) == ["layer"]
    assert word in reasons(graph)["layer"]


def test_one_dimensional_convolution() -> None:
    graph = check(lambda m, x: m.line(m.a(x).flatten(2)), line=nn.Conv1d(4, 4, 3))
    assert [u.name for u in graph.units] == ["a"]
    assert "Conv1d" in reasons(graph)["line"]


def test_hooks_on_layers() -> None:
    model = nets.randomise(Net(lambda m, x: m.d(m.c(m.act(m.b(m.a(x))))), act=nn.ReLU()))
    model.c.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model.act.register_forward_hook(lambda module, args, value: value + 1)
    graph = check_traced(trace_network(model, nets.example(size=8)))
    assert [u.name for u in graph.units] == ["a", "b", "d"]
    assert graph.units[1].activation is None
    assert spans(graph) == [(0, 2), (2, 3)]
    assert all("hooks" in reason for reason in reasons(graph).values())
    assert set(reasons(graph)) == {"act", "c"}


class Gate(nn.Module):
    """Takes a decision that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.mean() > 0 else x


def test_control_flow_in_a_submodule_is_left_alone() -> None:
    graph = check(lambda m, x: m.c(m.block(m.b(m.a(x)))), block=nn.Sequential(Gate(), nn.ReLU()))
    assert [u.name for u in graph.units] == ["a", "b", "c"]
    assert spans(graph) == [(0, 2), (2, 3)]
    assert list(reasons(graph)) == ["block_0"]
    assert "control flow" in reasons(graph)["block_0"]


class TwoInputs(nn.Module):
    """One branch for each input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 3, 4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.c((self.a(x) + self.b(y)).relu())


def test_two_inputs() -> None:
    inputs = nets.example(size=8), nets.example(size=8, seed=1)
    traced = trace_network(nets.randomise(TwoInputs()), inputs)
    replay.assert_true(traced, *inputs)
    replay.assert_private(traced, *inputs)
    assert spans(traced.graph) == [(0, 1), (1, 2), (2, 3)]
    assert traced.graph.residuals == ()
    assert "same value" in reasons(traced.graph)["add"]
    assert traced.graph.input_shape == (2, 3, 8, 9)


class Decides(nn.Module):
    """A module of timm's layers that tracing cannot enter."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.conv, self.inner = nn.Conv2d(4, 4, 1), inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.conv(x)) if x.abs().sum() > 0 else x


@pytest.mark.parametrize("gamma", [1.0, 0.0])
def test_an_opaque_module_keeps_the_activations_of_its_norms(gamma: float) -> None:
    layers = pytest.importorskip("timm.layers")
    norms = [layers.BatchNormAct2d(4) for _ in range(3)]
    block = Decides(norms[0])
    model = Net(lambda m, x: m.own(m.c(m.both(m.block.inner(m.b(m.block(m.a(x))))))))
    for name, module in (("block", block), ("both", norms[1]), ("own", norms[2])):
        model.add_module(name, module)
    nets.randomise(model)
    with torch.no_grad():
        norms[0].weight.fill_(gamma)  # zero hides that the activation is missing, unless it is read
        norms[0].bias.fill_(-1.0)
    traced = trace_network(model, nets.example(size=8))
    check_traced(traced)
    x = torch.randn(2, 4, 8, 9, generator=torch.Generator().manual_seed(2)).double()
    copied = traced.module.get_submodule("block")
    assert torch.equal(copied(x), block.double()(x))
    assert (copied(x) >= 0).all()
    assert [(u.bn, u.activation) for u in traced.graph.units] == [
        (None, None),
        (None, None),
        ("both", "relu"),
        ("own", "relu"),
    ]


def test_a_hidden_norm_is_seen_by_relaxing_and_collapsing() -> None:
    layers = pytest.importorskip("timm.layers")
    block = Decides(layers.BatchNormAct2d(4))
    model = nets.randomise(Net(lambda m, x: m.c(m.b(m.block(m.a(x)))), block=block)).eval()
    x = nets.example(size=8)
    graph = trace_network(model, x).graph
    assert torch.equal(relax(model, graph, MergePlan.of(graph, []))(x), model(x))


def gated(m: Net, x: Tensor) -> Tensor:
    return x * m.up(x.mean((2, 3), keepdim=True)).sigmoid()


def scaled(m: Net, x: Tensor) -> Tensor:
    return m.plane * x  # one value per position, which no convolution can take in


REASONS: list[tuple[Forward, str, str]] = [
    (gated, "mul", "a multiplication with one value per channel, as in squeeze-and-excitation"),
    (scaled, "mul", "a multiplication with a learned or stored value, as in layer scale"),
    (lambda m, x: x + m.plane, "add", "an addition with a learned or stored value"),
    (lambda m, x: x * m.plane.view(8, 9), "mul", "a multiplication with a learned or stored value"),
    (lambda m, x: x * m.up(x), "mul", "a multiplication of two maps"),
]


@pytest.mark.parametrize(("step", "node", "words"), REASONS)
def test_arithmetic_is_called_what_it_is(step: Forward, node: str, words: str) -> None:
    model = Net(lambda m, x: m.b(step(m, m.a(x))), up=nn.Conv2d(4, 4, 1))
    model.plane = nn.Parameter(torch.linspace(0.1, 1.0, 72).reshape(8, 9))
    graph = check_traced(trace_network(nets.randomise(model), nets.example(size=8)))
    told = " ".join(reasons(graph).values())
    assert words in told
    assert ("squeeze" in told) == ("squeeze" in words)


def test_a_number_that_leads_to_no_convolution_is_called_one() -> None:
    graph = check(lambda m, x: m.b(functional.max_pool2d(m.a(x).relu() * 0.1, 1)))
    assert "a multiplication with a number" in reasons(graph)["mul"]


@pytest.mark.parametrize(("step", "node", "words"), REASONS)
def test_a_residual_names_what_stands_in_its_branch(step: Forward, node: str, words: str) -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.d(x + m.b2(step(m, m.b(x).relu())))

    model = Net(forward, up=nn.Conv2d(4, 4, 1), b2=nn.Conv2d(4, 4, 1))
    model.plane = nn.Parameter(torch.linspace(0.1, 1.0, 72).reshape(8, 9))
    graph = check_traced(trace_network(nets.randomise(model), nets.example(size=8)))
    assert graph.residuals == ()
    (told,) = [reason for reason in reasons(graph).values() if "is no residual" in reason]
    assert "its branch goes through" in told and words in told


@pytest.mark.parametrize(("step", "node", "words"), REASONS)
def test_a_residual_names_what_stands_before_its_addition(
    step: Forward, node: str, words: str
) -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.d(x + step(m, m.c(m.b(x).relu())))

    model = Net(forward, up=nn.Conv2d(4, 4, 1))
    model.plane = nn.Parameter(torch.linspace(0.1, 1.0, 72).reshape(8, 9))
    graph = check_traced(trace_network(nets.randomise(model), nets.example(size=8)))
    (told,) = [reason for reason in reasons(graph).values() if "is no residual" in reason]
    assert "stands between a convolution and this addition" in told and words in told
