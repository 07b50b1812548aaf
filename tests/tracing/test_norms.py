"""Normalisations of torchvision and timm are the affine maps that they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests import nets
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.importance.folded import folded
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.merge import certify, collapse, relax
from trt_layermerge.tracing import trace_network

misc = pytest.importorskip("torchvision.ops.misc")
FrozenNorm = misc.FrozenBatchNorm2d


def random_buffers(model: nn.Module) -> nn.Module:
    """Gives frozen normalisations statistics, scale and shift that are not trivial."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if "Frozen" in type(module).__name__:
            for name, low, high in [
                ("weight", 0.5, 1.5),
                ("bias", -1.0, 1.0),
                ("running_mean", -1.0, 1.0),
                ("running_var", 0.5, 2.0),
            ]:
                getattr(module, name).uniform_(low, high, generator=generator)
    return model.eval()


def network(norm: Callable[[int], nn.Module]) -> nn.Module:
    layers = (nn.Conv2d(3, 4, 3, padding=1, bias=False), norm(4), nn.ReLU())
    more = (nn.Conv2d(4, 4, 3, padding=1, bias=False), norm(4), nn.Conv2d(4, 4, 1), norm(4))
    return nn.Sequential(*layers, *more, nn.ReLU())


def test_a_frozen_norm_belongs_to_its_convolution() -> None:
    model = random_buffers(nets.randomise(network(FrozenNorm)))
    x = nets.example(size=8)
    traced = trace_network(model, x)
    assert [u.bn for u in traced.graph.units] == ["1", "4", "6"]
    assert [u.activation for u in traced.graph.units] == ["relu", None, "relu"]
    assert traced.graph.barriers == ()
    assert torch.equal(traced.module(x), model(x))
    assert traced.module.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(folded(traced.module)(x), model(x), rtol=1e-5, atol=1e-5)


def test_training_leaves_frozen_statistics_alone() -> None:
    model = random_buffers(nets.randomise(network(FrozenNorm)))
    x = nets.example(size=8)
    graph = trace_network(model, x).graph
    relaxed = relax(model, graph, MergePlan.of(graph, []))
    assert torch.equal(relaxed(x), model(x))
    assert torch.equal(relaxed.train()(x), model(x))
    assert len(list(relaxed.parameters())) == len(list(model.parameters()))


@torch.no_grad()
def test_blocks_with_frozen_norms_merge_exactly() -> None:
    model = random_buffers(nets.randomise(network(FrozenNorm)))
    x = nets.example(size=8)
    graph = trace_network(model, x).graph
    exact = [c for c in enumerate_candidates(graph) if c.block.start == 1 and c.block.end == 3]
    chosen = next(c for c in exact if c.kind == "compose" and len(c.kept) == 2)
    relaxed = relax(model, graph, MergePlan.of(graph, [chosen]))
    merged = collapse(relaxed)
    assert certify(relaxed, merged, x).ok
    top = model(x)[:, :, 3:-3, 3:-3]  # the border of a merged block differs by the norm's shift
    torch.testing.assert_close(relaxed(x)[:, :, 3:-3, 3:-3], top, rtol=1e-4, atol=1e-4)
    assert not any("Norm" in type(m).__name__ for m in merged.modules())


def test_timms_frozen_norm_with_activation() -> None:
    layers = pytest.importorskip("timm.layers")
    frozen = pytest.importorskip("timm.layers.norm_act").FrozenBatchNormAct2d
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), frozen(4), nn.Conv2d(4, 4, 3), frozen(4, act_layer=nn.SiLU)
    )
    assert layers is not None
    model = random_buffers(nets.randomise(model))
    x = nets.example(size=8)
    traced = trace_network(model, x)
    assert [(u.bn, u.activation) for u in traced.graph.units] == [("1", "relu"), ("3", "silu")]
    assert torch.equal(traced.module(x), model(x))


def test_a_detectors_backbone_has_its_normalisations() -> None:
    build = pytest.importorskip("torchvision.models.detection.backbone_utils")
    counts = []
    for norm in (nn.BatchNorm2d, FrozenNorm):
        body = build.resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=norm)
        graph = trace_network(body.body, torch.randn(1, 3, 64, 64)).graph
        counts.append((sum(u.bn is not None for u in graph.units), len(graph.residuals)))
    assert counts == [(49, 16), (49, 16)]
