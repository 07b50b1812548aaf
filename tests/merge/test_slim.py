"""Networks of narrower streams: equal to hand-sliced ones, certified, and refused with reasons."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests import nets
from tests.merge.test_zoo import network
from trt_layermerge.core.graph import LayerGraph, graph_from_json, graph_to_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.streams import at_widths, life, plan_at, touched
from trt_layermerge.errors import UsageError
from trt_layermerge.kinds import enumerate_candidates, refusal
from trt_layermerge.kinds.stream import StreamWidth
from trt_layermerge.merge import certify, collapse, match_error, relax, repair
from trt_layermerge.merge.relax import retrace
from trt_layermerge.merge.slim import choose_channels
from trt_layermerge.tracing import trace

ZOO = (
    "torchvision:resnet18",
    "torchvision:resnet50",
    "torchvision:mobilenet_v2",
    "torchvision:regnet_x_400mf",
    "torchvision:vgg16_bn",
    "timm:resnet18",
    "timm:efficientnet_lite0",
    "timm:repvgg_a0",
    "glyphs:resnet20",
    "glyphs:mobilenet_v2",
)


class Stage(nn.Module):
    """A stem, two residual blocks on its stream, a projected one, and a flattened head."""

    def __init__(self, widths: tuple[int, int] = (16, 24)) -> None:
        super().__init__()
        narrow, wide = widths
        self.stem = nn.Sequential(*nets.conv_bn(3, narrow, 3), nn.ReLU())
        self.first, self.second = Block(narrow, narrow, 12), Block(narrow, narrow, 12)
        self.third = Block(narrow, wide, 12, 2)
        self.head = nn.Linear(wide * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(self.second(self.first(self.stem(x))))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 2), 1))


class Block(nn.Module):
    """Two convolutions of a width of their own between, beside a shortcut."""

    def __init__(self, c_in: int, c_out: int, inner: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nets.conv_bn(c_in, inner, 3, stride)
        self.conv2, self.bn2 = nets.conv_bn(inner, c_out, 3)
        plain = stride == 1 and c_in == c_out
        self.shortcut = (
            nn.Identity() if plain else nn.Sequential(*nets.conv_bn(c_in, c_out, 1, stride))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


def halves(graph: LayerGraph) -> dict[str, int]:
    """Returns about half of the channels of every stream that may be narrower."""
    offered = StreamWidth().widths(graph)
    return {name: widths[len(widths) // 2] for name, widths in offered.items() if widths}


def narrowed(model: nn.Module, graph: LayerGraph, widths: dict[str, int], **channels):
    return relax(model, graph, MergePlan(plan_at(graph, widths), channels=channels))


def stage() -> tuple[nn.Module, Tensor, LayerGraph]:
    model, x = nets.randomise(Stage()).double(), nets.example(batch=6).double()
    return model, x, trace(model, x)


def test_streams_of_a_stage_and_their_life() -> None:
    _, _, graph = stage()
    first, second = graph.streams
    assert (first.name, first.channels) == ("stem.0", 16)
    assert first.writers == ("stem.0", "first.conv2", "second.conv2")
    assert first.readers == ("first.conv1", "second.conv1", "third.conv1", "third.shortcut.0")
    assert set(second.writers) == {"third.conv2", "third.shortcut.0"}
    assert second.readers == ("head",)
    assert life(graph, first) == (0, 6)  # the projection stands where its residual ends
    assert life(graph, second) == (5, 6)
    assert graph_from_json(graph_to_json(graph)) == graph


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: nn.Sequential(*nets.conv_bn(3, 16, 3), nn.Conv2d(16, 16, 3, groups=4)), "grouped"),
        (lambda: nn.Sequential(*nets.conv_bn(3, 16, 3)), "what the network returns"),
        (lambda: nn.Sequential(*nets.conv_bn(3, 16, 3), nn.PixelShuffle(2)), "PixelShuffle"),
        (lambda: nn.Sequential(*nets.conv_bn(3, 16, 3), nn.PReLU(16)), "PReLU"),
        (lambda: Shared(), "more than one place"),
    ],
)
def test_walls_have_reasons(model, words: str) -> None:
    graph = trace(nets.randomise(model()), nets.example())
    assert words in str(graph.streams[0].refusal)
    assert not StreamWidth().widths(graph).get(graph.streams[0].name)


class Shared(nn.Module):
    """One convolution that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nets.Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(torch.relu(self.conv(torch.relu(self.stem(x))))))


@torch.no_grad()
def test_a_narrower_network_is_the_one_sliced_by_hand() -> None:
    model, x, graph = stage()
    first, second = (
        (1, 2, 5, 7, 8, 11, 14, 15),
        (0, 3, 4, 6, 7, 9, 10, 12, 13, 14, 20, 21, 22, 23, 1, 2),
    )
    second = tuple(sorted(second))
    relaxed = narrowed(
        model,
        graph,
        {"stem.0": 8, graph.streams[1].name: 16},
        **{"stem.0": first, graph.streams[1].name: second},
    )
    small = Stage((8, 16)).double().eval()
    rows = torch.arange(24 * 4).reshape(24, 4)[list(second)].flatten()
    sliced = OrderedDict()
    for name, value in model.state_dict().items():
        out = (
            first
            if name.startswith(("stem", "first.conv2", "first.bn2", "second.conv2", "second.bn2"))
            else None
        )
        out = second if name.startswith(("third.conv2", "third.bn2", "third.shortcut")) else out
        into = (
            first
            if name
            in (
                "first.conv1.weight",
                "second.conv1.weight",
                "third.conv1.weight",
                "third.shortcut.0.weight",
            )
            else None
        )
        value = value[:, rows] if name == "head.weight" else value
        value = value[list(out)] if out and value.ndim else value
        sliced[name] = value[:, list(into)] if into else value
    small.load_state_dict(sliced)
    error = (relaxed(x) - small(x)).abs().max() / small(x).abs().max()
    assert float(error) <= 1e-12  # float64, the same sums in the same order
    wrong = narrowed(model, graph, {"stem.0": 8}, **{"stem.0": tuple(range(8))})
    assert float((wrong(x) - small(x)).abs().max()) > 1e-3


@torch.no_grad()
def test_full_width_is_the_original() -> None:
    model, x, graph = stage()
    full = {s.name: s.channels for s in graph.streams}
    plan = MergePlan(plan_at(graph, full))
    assert plan == MergePlan.of(graph, []) and not plan.widths
    error = (collapse(relax(model, graph, plan))(x) - model(x)).abs().max() / model(x).abs().max()
    assert float(error) <= 1e-10  # float64


@torch.no_grad()
def test_channels_that_say_nothing_are_the_ones_that_go() -> None:
    model, x, graph = stage()
    dead = [0, 3, 9, 10, 13, 4, 6, 12]
    for module in (model.stem[1], model.first.bn2, model.second.bn2):
        module.weight[dead], module.bias[dead] = 0, 0
    traced = retrace(model, graph)
    found = choose_channels(traced, {"stem.0": [12, 8]}, x.split(3))["stem.0"]
    kept = tuple(c for c in range(16) if c not in dead)
    assert found[8] == kept and set(kept) < set(found[12])
    relaxed = narrowed(model, graph, {"stem.0": 8}, **{"stem.0": kept})
    assert float((relaxed(x) - model(x)).abs().max()) <= 1e-10 * float(model(x).abs().max())
    repair(relaxed, model, x.split(3))
    assert float((relaxed(x) - model(x)).abs().max()) <= 1e-3 * float(model(x).abs().max())


@torch.no_grad()
def test_repair_makes_up_for_what_is_lost() -> None:
    model, _, graph = stage()
    x, unseen = nets.example(batch=96).double(), nets.example(batch=32, seed=1).double()
    relaxed = narrowed(model, graph, halves(graph))

    def error() -> float:
        return float((relaxed(unseen) - model(unseen)).square().mean())

    before = error()
    matched = match_error(relaxed, model, unseen)
    repair(relaxed, model, x.split(32))
    assert error() < 0.5 * before
    assert match_error(relaxed, model, unseen) < matched


@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_published_networks_of_half_width(name: str) -> None:
    model, size = network(name)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    graph = trace(model, x)
    widths = halves(graph)
    assert len(widths) >= 3
    relaxed = narrowed(model, graph, widths)
    merged = collapse(relaxed)
    certificate = certify(relaxed, merged, x)
    assert certificate.ok, certificate.to_json()  # 1e-10 in float64, of every block and the whole
    assert sum(p.numel() for p in merged.parameters()) < sum(p.numel() for p in model.parameters())


@torch.no_grad()
def test_replacements_stand_in_narrower_streams() -> None:
    model, x, graph = stage()
    kinds = ("compose", "fit", "identity", "narrow", "stream")
    offered = enumerate_candidates(graph, kinds=kinds)
    narrower = [c for c in offered if c.widths]
    assert {c.kind for c in narrower} == {c.kind for c in offered}
    assert len({c.key for c in offered}) == len(offered)
    tried = 0
    for candidate in narrower[:: max(1, len(narrower) // 24)]:
        units = plan_at(graph, dict(candidate.widths))
        span = candidate.block
        rest = [u for u in units if not span.start <= u.block.start < span.end]
        relaxed = relax(model, graph, MergePlan.of(graph, [*rest, candidate]))
        assert certify(relaxed, collapse(relaxed), x).ok
        assert (
            at_widths(graph, at_widths(graph, candidate, {}), dict(candidate.widths)) == candidate
        )
        tried += 1
    assert tried >= 20


def test_what_is_left_out_never_joins_two_streams() -> None:
    chain = nn.Sequential(
        *nets.conv_bn(3, 16, 3),
        nn.ReLU(),
        *nets.conv_bn(16, 16, 3),
        nn.ReLU(),
        *nets.conv_bn(16, 16, 3),
        nn.ReLU(),
    )
    model = nets.randomise(nn.Sequential(chain, nets.Head(16)))
    graph = trace(model, nets.example())
    offered = enumerate_candidates(graph, kinds=("compose", "identity", "stream"))
    removal = next(c for c in offered if c.kind == "identity" and c.block.start == 1)
    assert {s.name for s in touched(graph, removal)} == {s.name for s in graph.streams[:2]}
    narrower = [c for c in offered if c.widths and c.kind == "compose" and 1 not in c.kept]
    assert not [c for c in narrower if c.block.start <= 1 < c.block.end and dict(c.widths)]


def test_plans_that_do_not_agree_are_refused() -> None:
    model, _, graph = stage()
    eight, other = plan_at(graph, {"stem.0": 8}), plan_at(graph, {})
    with pytest.raises(UsageError, match="channels wide in one place"):
        sixteen = at_widths(graph, other[1], {"stem.0": 12})
        relax(model, graph, MergePlan((eight[0], sixteen, *eight[2:])))
    with pytest.raises(UsageError, match="keeps 3 channels"):
        narrowed(model, graph, {"stem.0": 8}, **{"stem.0": (0, 1, 2)})
    gone = replace(graph, streams=())
    with pytest.raises(UsageError):
        relax(model, gone, MergePlan(eight))
    assert all(refusal(graph, c) is None for c in other)
