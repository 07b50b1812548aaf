"""Hand-checked graphs of tiny networks, and every claim of them computed anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests import nets
from tests.tracing import replay
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.tracing import TracedNetwork, trace, trace_network


def spans(graph: LayerGraph) -> list[tuple[int, int]]:
    return [(s.start, s.end) for s in graph.segments]


def residuals(graph: LayerGraph) -> list[tuple[int, int]]:
    return [(r.start, r.end) for r in graph.residuals]


@pytest.mark.parametrize("name", nets.FACTORIES)
def test_every_claim_holds(name: str) -> None:
    traced = trace_network(nets.FACTORIES[name](seed=3), nets.example())
    replay.assert_true(traced, nets.example(seed=1))


@pytest.mark.parametrize("name", nets.FACTORIES)
def test_values_inside_segments_are_private(name: str) -> None:
    traced = trace_network(nets.FACTORIES[name](), nets.example(size=8))
    replay.assert_private(traced, nets.example(size=8))


def test_a_wrong_graph_is_noticed() -> None:
    traced = trace_network(nets.basic_resnet(), nets.example())
    first, *others = traced.graph.units
    wrong = replace(first, spec=replace(first.spec, padding=(0, 1, 2, 1)))
    with pytest.raises(AssertionError):
        replay.assert_true(
            TracedNetwork(traced.module, replace(traced.graph, units=(wrong, *others))),
            nets.example(),
        )


def test_a_missing_residual_is_noticed() -> None:
    traced = trace_network(nets.mobile(), nets.example(size=8))
    graph = replace(traced.graph, residuals=traced.graph.residuals[1:])
    with pytest.raises(AssertionError):
        replay.assert_private(TracedNetwork(traced.module, graph), nets.example(size=8))


def test_plain_chain() -> None:
    graph = trace(nets.plain_chain(), nets.example())
    assert [u.name for u in graph.units] == ["0", "3", "6", "9"]
    assert [u.bn for u in graph.units] == ["1", "4", "7", "10"]
    assert [u.activation for u in graph.units] == ["relu"] * 4
    assert spans(graph) == [(0, 4)]
    assert graph.residuals == graph.barriers == ()
    assert graph.input_shape == (2, 3, 16, 17)
    assert graph.head_pointwise is None
    assert graph.units[1].spec == ConvSpec(
        in_channels=6,
        out_channels=6,
        kernel=(3, 3),
        stride=(1, 1),
        padding=(1, 1, 1, 1),
        dilation=(1, 1),
        groups=1,
        height=16,
        width=17,
        activation="relu",
    )


def test_weight_l1_is_the_sum_of_magnitudes() -> None:
    model = nets.plain_chain()
    graph = trace(model, nets.example())
    expected = sum(abs(w) for w in model[3].weight.detach().double().flatten().tolist())
    assert graph.units[1].weight_l1 == pytest.approx(expected, rel=1e-12)


def test_basic_resnet() -> None:
    graph = trace(nets.basic_resnet(), nets.example())
    assert [u.name for u in graph.units] == [
        "0.0",
        "1.conv1",
        "1.conv2",
        "2.conv1",
        "2.conv2",
        "3.conv1",
        "3.conv2",
    ]
    assert spans(graph) == [(0, 7)]
    assert residuals(graph) == [(1, 3), (3, 5), (5, 7)]
    assert [u.spec.residual for u in graph.units] == [False, False, True, False, True, False, True]
    plain, projected, last = (r.shortcuts for r in graph.residuals)
    assert len(plain) == len(projected) == len(last) == 1
    assert plain[0].identity and last[0].identity
    assert plain[0].out == graph.units[0].nodes.out
    assert (projected[0].conv, projected[0].bn) == ("2.shortcut.0", "2.shortcut.1")
    assert projected[0].spec is not None
    assert (projected[0].spec.kernel, projected[0].spec.stride) == ((1, 1), (2, 2))
    assert graph.residuals[1].projections == (projected[0].spec,)
    assert graph.barriers == ()


def test_mobile() -> None:
    graph = trace(nets.mobile(), nets.example())
    assert len(graph.units) == 11
    assert spans(graph) == [(0, 11)]
    assert residuals(graph) == [(1, 4), (7, 10)]
    inverted = ["relu6", "relu6", None]
    assert [u.activation for u in graph.units] == ["relu6", *inverted * 3, "relu6"]
    assert [u.index for u in graph.units if u.spec.depthwise] == [2, 5, 8]
    assert graph.head_pointwise == 10


def test_odd_chain() -> None:
    graph = trace(nets.odd_chain(), nets.example())
    assert spans(graph) == [(0, 6)]
    assert [u.activation for u in graph.units] == [
        "leaky_relu:0.2",
        None,
        "silu",
        "hardtanh:-0.5:0.75",
        "relu",
        "relu",
    ]
    assert [u.bn for u in graph.units] == ["1", "4", None, "8", None, "13"]
    specs = [u.spec for u in graph.units]
    assert [s.kernel for s in specs] == [(3, 5), (3, 3), (1, 3), (4, 2), (1, 1), (3, 3)]
    assert [s.padding for s in specs] == [
        (1, 2, 1, 2),
        (2, 2, 2, 2),
        (0, 1, 0, 1),
        (0, 1, 0, 1),
        (0, 0, 0, 0),
        (2, 0, 2, 0),
    ]
    assert [s.groups for s in specs] == [1, 4, 2, 12, 1, 1]
    assert specs[1].dilation == (2, 2)
    assert (specs[2].stride, specs[5].stride) == ((1, 2), (2, 2))


def test_repvgg_keeps_the_largest_kernel_as_unit() -> None:
    graph = trace(nets.repvgg_like(), nets.example())
    assert [u.name for u in graph.units] == ["0.dense.0", "1.dense.0", "2.dense.0"]
    assert [u.activation for u in graph.units] == ["relu"] * 3
    assert residuals(graph) == [(0, 1), (1, 2), (2, 3)]
    shortcuts = [sorted((s.conv or "", s.bn or "") for s in r.shortcuts) for r in graph.residuals]
    assert shortcuts == [
        [("0.point.0", "0.point.1")],
        [("", "1.skip"), ("1.point.0", "1.point.1")],
        [("", "2.skip"), ("2.point.0", "2.point.1")],
    ]


def test_branching() -> None:
    graph = trace(nets.branching(), nets.example())
    assert [u.name for u in graph.units] == [
        "stem.0",
        "left.0",
        "left.3",
        "right.0",
        "cat",
        "tail.0",
        "tail.3",
    ]
    assert spans(graph) == [(0, 1), (1, 3), (3, 4), (4, 5), (5, 7)]
    assert [(b.node, b.unit) for b in graph.barriers] == [("right_0", 0), ("cat", 2)]
    assert "concatenation" in graph.barriers[1].reason


class Nested(nn.Module):
    """An inner residual inside an outer one, both linear at their ends."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c, self.d = (
            nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(5)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = functional.relu(self.a(x))
        z = self.c(torch.relu(self.b(y)))
        y = (y + z).relu()
        return torch.add(x, self.d(y))


def test_nested_residuals_and_functional_activations() -> None:
    traced = trace_network(nets.randomise(Nested()), nets.example())
    assert spans(traced.graph) == [(0, 5)]
    assert sorted(residuals(traced.graph)) == [(1, 5), (2, 4)]
    assert [u.activation for u in traced.graph.units] == [None, "relu", "relu", "relu", None]
    replay.assert_true(traced, nets.example())
    replay.assert_private(traced, nets.example())


class InPlace(nn.Module):
    """Reads a tensor again after an in-place activation has changed it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        skip = self.drop(x)
        y = self.relu(x)
        y = self.b(self.relu(self.a(y)))
        y += skip
        functional.leaky_relu(y, 0.1, True)
        return y


def test_in_place_changes_are_seen_by_later_readers() -> None:
    traced = trace_network(nets.randomise(InPlace()), nets.example())
    assert spans(traced.graph) == [(0, 3)]
    assert residuals(traced.graph) == [(1, 3)]
    assert [u.activation for u in traced.graph.units] == ["relu", "relu", "leaky_relu:0.1"]
    assert traced.graph.residuals[0].shortcuts[0].out == traced.graph.units[0].nodes.out
    replay.assert_true(traced, nets.example())


class Transparent(nn.Module):
    """Dropout, identities and a sum that starts at zero between the units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
        self.drop = nn.Dropout2d(0.3)
        self.same = nn.Sequential(nn.Identity(), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor, scale: float = 1.0, flag: bool = False) -> torch.Tensor:
        x = self.drop(self.a(x)).contiguous()
        y = self.same(functional.dropout(self.b(x), 0.5, self.training).relu())
        y = sum([self.same(x), self.drop(self.c(y))])
        return y * 2 if flag else y


def test_transparent_operations_are_seen_through() -> None:
    traced = trace_network(nets.randomise(Transparent()), nets.example())
    assert spans(traced.graph) == [(0, 3)]
    assert residuals(traced.graph) == [(1, 3)]
    assert traced.graph.barriers == ()
    assert len(traced.module.graph.find_nodes(op="placeholder")) == 1
    replay.assert_true(traced, nets.example())


class Padded(nn.Module):
    """Convolutions whose padding is a word."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(3, 4, (4, 3), padding="same", dilation=(1, 2))
        self.valid = nn.Conv2d(4, 4, 3, padding="valid")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.valid(self.same(x))


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")
def test_padding_by_name() -> None:
    traced = trace_network(nets.randomise(Padded()), nets.example())
    assert [u.spec.padding for u in traced.graph.units] == [(1, 2, 2, 2), (0, 0, 0, 0)]
    replay.assert_true(traced, nets.example())


def test_conv2d_same_is_padded_for_the_traced_size() -> None:
    layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(
        layers.Conv2dSame(3, 4, 3, stride=2),
        layers.BatchNormAct2d(4, act_layer=nn.SiLU),
        layers.Conv2dSame(4, 4, 5, stride=2, groups=4),
        layers.BatchNormAct2d(4, apply_act=False),
    )
    traced = trace_network(nets.randomise(model), nets.example())
    first, second = traced.graph.units
    assert first.spec.padding == (0, 1, 1, 1)  # 16 rows need one zero, 17 columns need two
    assert second.spec.padding == (1, 2, 2, 2)  # 8 rows need three, 9 columns need four
    assert (first.bn, first.activation, second.bn, second.activation) == ("1", "silu", "3", None)
    assert first.nodes.branch == "_1" and first.nodes.out == "_1_act"
    replay.assert_true(traced, nets.example())


def test_pooling_that_is_padded_for_its_input_is_pooling() -> None:
    pool = pytest.importorskip("timm.layers.pool2d_same")
    convs = (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model = nn.Sequential(
        convs[0], pool.MaxPool2dSame(3, 2), convs[1], pool.AvgPool2dSame(2, 1), convs[2]
    )
    traced = trace_network(nets.randomise(model), nets.example())
    reasons = [barrier.reason for barrier in traced.graph.barriers]
    assert len(reasons) == 2 and all("pooling" in reason for reason in reasons)
    replay.assert_true(traced, nets.example())


def test_one_path_of_two_terms_from_the_image() -> None:
    model = nets.randomise(nets.RepVgg(3, 3))
    graph = trace(model, nets.example())
    assert residuals(graph) == [(0, 1)]
    assert {s.out for s in graph.residuals[0].shortcuts} == {"skip", "point_1"}
