"""Published networks with random weights: counts, and every claim computed anew on small images."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import nets
from tests.tracing import replay
from trt_layermerge.tracing import trace_network

GLYPHS = Path(__file__).parents[2] / "examples" / "glyphs" / "nets.py"


def build(name: str) -> nn.Module:
    library, _, model = name.partition(":")
    torch.manual_seed(0)
    if library == "glyphs":
        return runpy.run_path(str(GLYPHS))[model]()
    if library == "timm":
        return pytest.importorskip("timm").create_model(model, pretrained=False)
    models = pytest.importorskip("torchvision").models
    if model == "vgg16_bn":  # without its classifier of 124 million weights
        return models.vgg.make_layers(models.vgg.cfgs["D"], batch_norm=True)
    extra = {"init_weights": False} if model == "googlenet" else {}
    return models.get_model(model, weights=None, **extra)


# name, units, segments, residuals, projections, head, published or derived blocks
UNDERSTOOD = [
    ("glyphs:resnet20", 19, 1, 9, 2, None, None),
    ("glyphs:mobilenet_v2", 34, 1, 8, 0, 33, None),
    ("torchvision:resnet18", 17, 2, 8, 3, None, None),
    ("torchvision:resnet34", 33, 2, 16, 3, None, 62),
    ("torchvision:resnet50", 49, 2, 16, 4, None, 107),
    ("torchvision:mobilenet_v2", 52, 1, 10, 0, 51, 171),
    ("torchvision:regnet_x_400mf", 67, 1, 22, 4, None, None),
    ("timm:resnet18", 17, 2, 8, 3, None, None),
    ("timm:mobilenetv2_100", 52, 1, 10, 0, 51, 171),
    ("timm:efficientnet_lite0", 49, 1, 9, 0, 48, None),
    ("timm:tf_efficientnet_lite0", 49, 1, 9, 0, 48, None),
    ("timm:resnet26d", 27, 2, 8, 4, None, None),
    ("timm:resnetv2_18", 26, 3, 8, 3, None, None),
    ("timm:nf_resnet26", 29, 2, 8, 4, None, None),
    ("timm:repvgg_a0", 22, 1, 22, 22, None, None),
]


@pytest.mark.parametrize(
    ("name", "units", "segments", "residuals", "projections", "head", "blocks"),
    UNDERSTOOD,
    ids=[row[0] for row in UNDERSTOOD],
)
def test_networks_that_are_understood_whole(
    name: str,
    units: int,
    segments: int,
    residuals: int,
    projections: int,
    head: int | None,
    blocks: int | None,
) -> None:
    size = 32 if name.startswith("glyphs") else 64
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    traced = trace_network(nets.randomise(build(name)), image)
    graph = traced.graph
    assert len(graph.units) == units
    assert graph.branches == ()
    assert len(graph.segments) == segments
    assert len(graph.residuals) == residuals
    assert sum(len(r.projections) for r in graph.residuals) == projections
    assert graph.head_pointwise == head
    assert len(graph.barriers) == segments - 1
    if blocks is not None:
        assert len(graph.blocks("paper")) == blocks
    replay.assert_true(traced, image)


def test_published_blocks_at_the_published_resolution() -> None:
    image = torch.zeros(1, 3, 224, 224)
    graph = trace_network(build("torchvision:mobilenet_v2"), image).graph
    assert len(graph.blocks("paper")) == 171
    assert max(len(b) for b in graph.blocks("paper")) == 21


# name, convolution units, residuals, branches that are not understood, other regions
CUT = [
    ("torchvision:vgg16_bn", 13, 0, 0, 0),
    ("torchvision:densenet121", 183, 0, 0, 0),
    ("torchvision:googlenet", 57, 0, 0, 9),
    ("torchvision:efficientnet_b0", 81, 0, 9, 16),
    ("torchvision:squeezenet1_1", 26, 0, 0, 8),
    ("torchvision:mobilenet_v3_small", 52, 1, 5, 9),
    ("timm:resnet26d", 28, 7, 1, 0),
    ("timm:darknet53", 52, 0, 23, 0),
    ("timm:efficientvit_b0", 34, 7, 4, 0),
]


@pytest.mark.parametrize(
    ("name", "units", "residuals", "branches", "regions"), CUT, ids=[c[0] for c in CUT]
)
def test_networks_with_barriers(
    name: str, units: int, residuals: int, branches: int, regions: int
) -> None:
    image = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    traced = trace_network(nets.randomise(build(name)), image)
    assert len(traced.graph.conv_units) == units
    assert len(traced.graph.residuals) == residuals
    assert sum(b.macs is None for b in traced.graph.branches) == branches
    assert len(traced.graph.branches) == branches + regions
    assert traced.graph.barriers
    replay.assert_true(traced, image)


@pytest.mark.parametrize(
    "name", ["torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1", "timm:resnet26d"]
)
def test_no_value_inside_a_segment_is_read_elsewhere(name: str) -> None:
    image = torch.randn(1, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    traced = trace_network(nets.randomise(build(name)), image)
    replay.assert_private(traced, image)
