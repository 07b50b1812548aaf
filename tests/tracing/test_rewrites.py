"""Linear operations are lifted exactly: by hand, on random networks, and through a whole merge."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests import nets
from tests.plans import composed, random_plan
from tests.tracing import replay
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.export.onnx import export_onnx
from trt_layermerge.kinds import refusal
from trt_layermerge.merge import certify, collapse, relax
from trt_layermerge.merge.relax import retrace
from trt_layermerge.tracing import trace_network
from trt_layermerge.tracing.forms import AveragingConv2d, PooledConv2d

EXACT = 1e-12
CERTIFIED = 1e-10

layers = pytest.importorskip("timm.layers")


class Code(nn.Module):
    """Modules, and a forward made of them."""

    def __init__(self, forward: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.body = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


class Const(nn.Module):
    """Multiplies by a parameter of one value per channel, or of one, and adds another."""

    def __init__(self, channels: int, shifted: bool, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.scale = nn.Parameter(0.5 + torch.rand(channels, 1, 1, generator=generator))
        self.shift = nn.Parameter(torch.randn(1, generator=generator)) if shifted else None

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        return x if self.shift is None else self.shift + x


def prepared(model: nn.Module, seed: int = 0) -> nn.Module:
    """Returns the network in float64, in eval mode, with random values everywhere."""
    nets.randomise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("gain", "gamma")):
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    return model.double()


def image(size: int = 12, seed: int = 0) -> Tensor:
    return nets.example(size=size, seed=seed).double()


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def lifted(model: nn.Module, size: int = 12) -> LayerGraph:
    """Returns the graph of a network whose traced copy is exactly the network."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    traced = trace_network(model, image(size))
    assert error(traced.module(image(size, 5)), model(image(size, 5))) <= EXACT
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = trace_network(model, image(size, 3)).graph
    assert again == traced.graph
    graph = retrace(model, traced.graph).graph
    untouched = collapse(relax(model, graph, MergePlan.of(graph, [])))
    assert error(untouched(image(size, 7)), model(image(size, 7))) <= EXACT
    replay.assert_private(traced, image(size))
    replay.assert_true(traced, image(size))
    return graph


@torch.no_grad()
def merged(
    model: nn.Module, graph: LayerGraph, start: int, end: int, size: int = 12
) -> tuple[nn.Module, nn.Module]:
    """Returns the relaxed and the certified merged network where a block keeps all its units."""
    candidate = composed(graph, start, end, range(start, end))
    assert refusal(graph, candidate) is None
    relaxed = relax(model, graph, MergePlan.of(graph, [candidate]))
    found = collapse(relaxed)
    certificate = certify(relaxed, found, image(size, 9))
    assert certificate.ok and certificate.max_rel_error <= CERTIFIED
    return relaxed, found


def inside(x: Tensor, border: int) -> Tensor:
    return x[:, :, border:-border, border:-border]


def conv(c_in: int, c_out: int, kernel: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, **options)


# Weight standardisation


@pytest.mark.parametrize("name", ["StdConv2d", "ScaledStdConv2d"])
@pytest.mark.parametrize("same", [False, True])
def test_standardised_weights_are_baked(name: str, same: bool) -> None:
    kind = getattr(layers, name + "Same" if same else name)
    first = kind(3, 8, 3, stride=2)
    model = prepared(nn.Sequential(first, kind(8, 6, 3, groups=2, bias=True), nn.ReLU()))
    graph = lifted(model, 13)
    assert [(u.name, u.activation) for u in graph.units] == [("0", None), ("1", "relu")]
    merged(model, graph, 0, 2, 13)
    rows = first.weight.detach().flatten(1)
    standard = (rows - rows.mean(1, keepdim=True)) / (
        rows.var(1, unbiased=False, keepdim=True) + first.eps
    ).sqrt()
    if name.startswith("Scaled"):
        standard = standard * first.gain.detach().flatten(1) * first.scale
    baked = trace_network(model, image(13)).module.get_submodule("0").weight
    torch.testing.assert_close(baked.flatten(1), standard, rtol=EXACT, atol=EXACT)


@torch.no_grad()
def test_a_standardised_convolution_with_hooks_or_in_two_places_stays() -> None:
    hooked, twice = layers.StdConv2d(4, 4, 1), layers.StdConv2d(4, 4, 1)
    hooked.register_forward_hook(lambda *_: None)
    model = prepared(nn.Sequential(conv(3, 4), hooked, twice, conv(4, 4), twice))
    traced = trace_network(model, image())
    assert [u.name for u in traced.graph.units] == ["0", "3"]
    assert error(traced.module(image()), model(image())) <= EXACT


# Constants


FOLDED: list[tuple[str, Callable[[nn.Module, Tensor], Tensor]]] = [
    ("a number behind", lambda m, x: m.b(m.a(x) * 0.1)),
    ("a quotient", lambda m, x: m.b(m.norm(m.a(x)) / 3 - 2)),
    ("a difference", lambda m, x: m.b(0.5 - m.norm(m.a(x)))),
    ("layer scale", lambda m, x: m.b(m.layer_scale(m.norm(m.a(x))))),
    ("an affine", lambda m, x: m.b(m.affine(m.a(x)))),
    ("ahead", lambda m, x: m.b(m.scale(functional.relu(m.a(x))))),
    ("two ahead", lambda m, x: m.b(m.scale(functional.relu(m.a(x))) * 2)),
]


@pytest.mark.parametrize(("name", "forward"), FOLDED, ids=[r[0] for r in FOLDED])
def test_constants_become_part_of_their_neighbours(
    name: str, forward: Callable[..., Tensor]
) -> None:
    parts = {
        "a": conv(3, 4, bias=False),
        "norm": nn.BatchNorm2d(4),
        "b": conv(4, 6, groups=2),
        "layer_scale": layers.LayerScale2d(4, inplace=True),
        "affine": Const(4, True),
        "scale": Const(4, False),
    }
    model = prepared(Code(forward, **parts))
    graph = lifted(model)
    assert [u.name for u in graph.units] == ["a", "b"]
    assert graph.barriers == ()
    merged(model, graph, 0, 2)


def test_a_branch_with_a_factor_is_a_residual() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.head(x)
        y = m.b(m.a(x).relu_()).mul(0.1)
        y += x
        return m.tail(y)

    model = prepared(Code(forward, head=conv(3, 4), a=conv(4, 4), b=conv(4, 4), tail=conv(4, 3)))
    graph = lifted(model)
    assert [(r.start, r.end) for r in graph.residuals] == [(1, 3)]
    merged(model, graph, 1, 3)
    merged(model, graph, 0, 4)


@torch.no_grad()
def test_a_shift_before_padding_is_a_unit_of_its_own() -> None:
    model = prepared(
        nn.Sequential(conv(3, 4), nn.ReLU(), Const(4, True), conv(4, 5), nn.ReLU(), conv(5, 3))
    )
    graph = lifted(model)
    assert [u.spec.pointwise and u.spec.depthwise for u in graph.units] == [
        False,
        True,
        False,
        False,
    ]
    assert [u.activation for u in graph.units] == ["relu", None, "relu", None]
    _, found = merged(model, graph, 1, 3)
    close = error(inside(found(image(16)), 2), inside(model(image(16)), 2))
    assert close <= EXACT  # but for the borders it is the network itself
    assert error(found(image(16)), model(image(16))) > 1e-3


def test_a_shared_convolution_keeps_its_weights() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.b(m.twice(x) * 0.5) + m.b2(m.twice(m.c(x)))

    model = prepared(
        Code(forward, a=conv(3, 4), twice=conv(4, 4), c=conv(4, 4), b=conv(4, 4), b2=conv(4, 4))
    )
    graph = lifted(model)
    assert "twice" not in [u.name for u in graph.units]


def test_what_differs_within_a_channel_is_no_constant() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.b(m.a(x) * m.plane)

    model = Code(forward, a=conv(3, 4), b=conv(4, 4))
    model.plane = nn.Parameter(torch.rand(12, 13))
    graph = lifted(prepared(model))
    assert [(s.start, s.end) for s in graph.segments] == [(0, 1), (1, 2)]
    assert "a multiplication with a learned or stored value" in graph.barriers[0].reason


def test_training_changes_what_was_a_number_no_more_than_before() -> None:
    model = prepared(nn.Sequential(conv(3, 4), nn.ReLU(), Code(lambda m, x: x + 0.5), conv(4, 3)))
    traced = trace_network(model, image())
    (shift,) = [u for u in traced.graph.units if u.name.endswith("add")]
    assert not any(p.requires_grad for p in traced.module.get_submodule(shift.name).parameters())


# Normalisations and activations without a convolution


class PreActivation(nn.Module):
    """norm, ReLU, convolution, twice, beside an identity or a projection of the first ReLU."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, norm: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c_in) if norm else nn.Identity()
        self.norm2 = nn.BatchNorm2d(c_out) if norm else nn.Identity()
        self.conv1 = conv(c_in, c_out, stride=stride)
        self.conv2 = conv(c_out, c_out)
        plain = c_in == c_out and stride == 1
        self.project = None if plain else nn.Conv2d(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(x))
        x = x if self.project is None else self.project(y)
        return self.conv2(functional.relu(self.norm2(self.conv1(y)))) + x


@pytest.mark.parametrize("norm", [True, False])
def test_pre_activation_blocks_are_understood_whole(norm: bool) -> None:
    blocks = [
        PreActivation(4, 4, norm=norm),
        PreActivation(4, 6, 2, norm),
        PreActivation(6, 6, 1, norm),
    ]
    model = prepared(nn.Sequential(conv(3, 4), *blocks, nn.BatchNorm2d(6), nn.ReLU(), conv(6, 3)))
    graph = lifted(model)
    assert graph.barriers == ()
    assert len(graph.residuals) == 3
    names = [u.name for u in graph.units]
    assert ("1.norm1_alone" in names) == norm
    (first, *_) = graph.residuals
    merged(model, graph, first.start, first.end)
    merged(model, graph, first.start, first.start + 2)


@torch.no_grad()
def test_a_normalisation_before_an_unpadded_convolution_folds_exactly() -> None:
    model = prepared(
        nn.Sequential(conv(3, 4), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.ReLU())
    )
    graph = lifted(model)
    relaxed, found = merged(model, graph, 1, 3)
    assert error(found(image()), model(image())) <= EXACT
    assert error(relaxed(image()), model(image())) <= EXACT
    assert not any(isinstance(m, nn.BatchNorm2d) for m in found.modules())


def test_a_normalisation_behind_an_activation_ends_a_branch() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.head(x)
        return m.tail(x + m.norm(functional.gelu(m.a(x))))

    model = prepared(
        Code(forward, head=conv(3, 4), a=conv(4, 4), norm=nn.BatchNorm2d(4), tail=conv(4, 3))
    )
    graph = lifted(model)
    assert [(r.start, r.end) for r in graph.residuals] == [(1, 3)]
    merged(model, graph, 1, 3)


@torch.no_grad()
def test_a_lone_normalisation_stays_one_for_training() -> None:
    model = prepared(nn.Sequential(conv(3, 4), nn.ReLU(), nn.BatchNorm2d(4), conv(4, 3)))
    graph = trace_network(model, image()).graph
    relaxed = relax(model, graph, MergePlan.of(graph, []))
    assert relaxed.state_dict().keys() == {f"net.{key}" for key in model.state_dict()}
    assert error(relaxed.train()(image()), model.train()(image())) <= EXACT


# Pooling, padding, filters


POOLS = [
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, 2, 1),
    nn.AvgPool2d((2, 3), (1, 2), ceil_mode=True, count_include_pad=False),
    Code(lambda m, x: functional.avg_pool2d(x, 3, 1, padding=1)),
]


@pytest.mark.parametrize("pool", POOLS)
@torch.no_grad()
def test_average_pooling_is_a_depthwise_convolution(pool: nn.Module) -> None:
    model = prepared(nn.Sequential(conv(3, 4), pool, conv(4, 5), nn.ReLU(), conv(5, 3)))
    graph = lifted(model)
    assert len(graph.units) == 4 and graph.barriers == ()
    assert graph.units[1].spec.depthwise
    merged(model, graph, 0, 2)
    merged(model, graph, 1, 3)
    plain = collapse(relax(model, graph, MergePlan.of(graph, [])))
    assert any(isinstance(m, AveragingConv2d) for m in plain.modules())
    assert torch.equal(plain(image()), model(image()))


WALLS = [
    (nn.AvgPool2d(3, 2, 1, count_include_pad=False), "pooling"),
    (nn.AvgPool2d(3, 2, ceil_mode=True), "pooling"),
    (nn.AvgPool2d(2, divisor_override=3), "pooling"),
    (nn.MaxPool2d(2), "pooling"),
    (layers.BlurPool2d(4), "padding by reflection"),
    (nn.ReplicationPad2d(1), "padding by repetition"),
    (nn.ConstantPad2d(1, 0.5), "padding outside a convolution"),
    (nn.GroupNorm(2, 4), "a group normalisation"),
    (layers.GroupNorm1(4), "a group normalisation"),
    (layers.GroupNormAct(4, 2), "a group normalisation"),
    (layers.LayerNorm2d(4), "a layer normalisation"),
    (layers.RmsNorm2d(4), "an RMS normalisation"),
    (nn.InstanceNorm2d(4), "an instance normalisation"),
    (nn.LocalResponseNorm(3), "a local response normalisation"),
    (layers.grn.GlobalResponseNorm(4, channels_last=False), "a global response normalisation"),
    (layers.FilterResponseNormAct2d(4), "a filter response normalisation"),
    (layers.EvoNorm2dS0(4, groups=2), "an EvoNorm"),
    (Code(lambda m, x: functional.group_norm(x, 2)), "a group normalisation"),
    (nn.PReLU(4), "PReLU"),
]


@pytest.mark.parametrize(("wall", "words"), WALLS, ids=[type(w).__name__ for w, _ in WALLS])
def test_what_is_not_linear_stays_a_wall_by_its_name(wall: nn.Module, words: str) -> None:
    model = prepared(nn.Sequential(conv(3, 4), wall, conv(4, 4)))
    graph = lifted(model, 14)  # of which rounded-up windows of three leave the map
    (barrier,) = graph.barriers
    assert words in barrier.reason


class Pooled(nn.Module):
    """A strided bottleneck whose shortcut is averaged, then projected, as in ResNet-D."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(4, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = conv(4, 6, stride=2), nn.BatchNorm2d(6)
        project = nn.Conv2d(4, 6, 1, bias=False, groups=2)
        pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.downsample = nn.Sequential(pool, project, nn.BatchNorm2d(6) if norm else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.downsample(x))


class Even(nn.Module):
    """Leaves out the last column, so that windows of two cover the map."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, (1, 2), 1)


@pytest.mark.parametrize("norm", [True, False])
def test_pooling_and_projection_are_one_shortcut(norm: bool) -> None:
    model = prepared(nn.Sequential(Even(), conv(3, 4), nn.ReLU(), Pooled(norm), conv(6, 3)))
    graph = lifted(model)
    (residual,) = graph.residuals
    (projection,) = residual.projections
    assert (projection.kernel, projection.stride) == ((2, 2), (2, 2))
    assert projection.groups == 2
    merged(model, graph, residual.start, residual.end)
    merged(model, graph, residual.start, residual.end + 1)
    plain = collapse(relax(model, graph, MergePlan.of(graph, [])))
    assert any(isinstance(m, PooledConv2d) for m in plain.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())


PADS = [
    nn.ZeroPad2d((0, 1, 2, 1)),
    nn.ZeroPad2d(1),
    nn.ConstantPad2d((1, 0, 1, 0), 0.0),
    Code(lambda m, x: functional.pad(x, (0, 1, 0, 1))),
]


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("padding", [0, 1, "same"])
def test_zeros_before_a_convolution_are_its_padding(pad: nn.Module, padding: int | str) -> None:
    padded = nn.Conv2d(4, 5, 3, padding=padding, bias=False)
    model = prepared(
        nn.Sequential(conv(3, 4), pad, padded, nn.BatchNorm2d(5), nn.ReLU(), conv(5, 3))
    )
    graph = lifted(model)
    assert graph.barriers == () and len(graph.units) == 3
    merged(model, graph, 0, 2)


def test_other_readers_keep_the_zeros() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = functional.pad(m.a(x), (0, 1, 0, 1))
        return torch.cat([m.b(x), functional.max_pool2d(x, 3, 1)], 1)

    model = prepared(Code(forward, a=conv(3, 4), b=nn.Conv2d(4, 4, 3)))
    assert lifted(model).units[1].spec.padding == (0, 0, 1, 1)


def test_a_blur_that_pads_with_zeros_is_a_convolution() -> None:
    blur = layers.BlurPool2d(4, pad_mode="constant")
    model = prepared(nn.Sequential(conv(3, 4), blur, conv(4, 5)))
    graph = lifted(model)
    assert graph.barriers == () and len(graph.units) == 3
    assert graph.units[1].spec.depthwise and graph.units[1].spec.stride == (2, 2)
    merged(model, graph, 0, 2)
    relaxed = relax(model, graph, MergePlan.of(graph, []))
    frozen = [p for p in relaxed.parameters() if not p.requires_grad]
    assert [tuple(p.shape) for p in frozen] == [(4, 1, 3, 3)]


# All of them at random


def random_layers(rng: random.Random, channels: int) -> list[nn.Module]:
    """Returns linear layers in a random order, convolutions and activations between them."""
    std = rng.choice([layers.StdConv2d, layers.ScaledStdConv2d])
    choices: list[Callable[[], list[nn.Module]]] = [
        lambda: [conv(channels, channels, rng.choice((1, 3))), nn.BatchNorm2d(channels), nn.ReLU()],
        lambda: [std(channels, channels, 3), nn.SiLU()],
        lambda: [conv(channels, channels, groups=2)],
        lambda: [layers.LayerScale2d(channels)],
        lambda: [Const(channels, rng.random() < 0.5, rng.randrange(99))],
        lambda: [nn.BatchNorm2d(channels)],
        lambda: [nn.AvgPool2d(3, 1, 1)],
        lambda: [nn.ZeroPad2d(1), nn.Conv2d(channels, channels, 3)],
        lambda: [PreActivation(channels, channels, norm=rng.random() < 0.5)],
        lambda: [Code(lambda m, x: x * 0.3), nn.ReLU()],
        lambda: [nn.AvgPool2d(2, 2, ceil_mode=True)],
    ]
    return [layer for _ in range(rng.randrange(4, 8)) for layer in rng.choice(choices)()]


@torch.no_grad()
def test_what_was_lifted_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    standard = layers.ScaledStdConv2dSame(4, 4, 3, stride=2)
    model = nn.Sequential(
        *(conv(3, 4), PreActivation(4, 4), PreActivation(4, 4, norm=False), nn.BatchNorm2d(4)),
        *(nn.ReLU(), nn.ZeroPad2d((0, 1, 0, 1)), conv(4, 4), standard, nn.ReLU(), Const(4, True)),
        *(conv(4, 4), nn.AvgPool2d(3, 1, 1), conv(4, 4), layers.BlurPool2d(4, pad_mode="constant")),
        nets.Head(4),
    )
    model, x = prepared(model).float(), nets.example(size=24)
    graph = trace_network(model, x).graph
    assert graph.barriers == ()
    for plan in (MergePlan.of(graph, []), random_plan(graph, 0)):
        found = collapse(relaxed := relax(model, graph, plan))
        report = export_onnx(found, x, tmp_path / "model.onnx", check=x, tolerance=1e-5)
        assert report.exporter == "torchscript"
        assert certify(relaxed, found, x).ok


@pytest.mark.parametrize("seed", range(25))
@torch.no_grad()
def test_random_networks_are_certified(seed: int) -> None:
    rng = random.Random(seed)
    model = prepared(nn.Sequential(conv(3, 4), *random_layers(rng, 4), conv(4, 3)), seed)
    graph = lifted(model, 16)
    plan = random_plan(graph, seed)
    relaxed = relax(model, graph, plan)
    certificate = certify(relaxed, collapse(relaxed), image(16))
    assert certificate.ok and certificate.max_rel_error <= CERTIFIED
