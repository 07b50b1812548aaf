"""Networks whose normalisation is more than one, as timm's: scored, and never folded wrongly."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, fx, nn

from tests import nets
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.importance.folded import folded
from trt_layermerge.merge import certify, collapse, relax
from trt_layermerge.tracing import trace_network


class ScaledBN(nn.BatchNorm2d):
    """Returns twice what batch normalisation returns."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Standardised(nn.Conv2d):
    """Standardises its weights whenever it runs."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


def chain(conv: type[nn.Conv2d], norm: type[nn.BatchNorm2d]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 8, 3, padding=1), norm(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(8, 3, 16, 16))
    return model.eval()


@pytest.mark.parametrize("name", ["mobilenetv2_100", "mobilenetv3_small_050", "regnetx_002"])
def test_a_norm_with_its_activation_inside_is_folded_and_the_activation_runs(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    images = torch.randn(2, 3, 64, 64)
    module: fx.GraphModule = trace_network(model, images).module
    with torch.no_grad():
        expected, found = model(images), folded(module)(images)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("conv", "norm"), [(nn.Conv2d, ScaledBN), (Standardised, nn.BatchNorm2d)])
def test_what_computes_more_than_its_weights_say_is_not_folded(
    conv: type[nn.Conv2d], norm: type[nn.BatchNorm2d]
) -> None:
    model, images = chain(conv, norm), torch.randn(2, 3, 16, 16)
    traced = trace_network(model, images)
    relaxed = relax(model, traced.graph, MergePlan.of(traced.graph, []))
    merged = collapse(relaxed)
    with torch.no_grad():
        expected = model(images)
        assert torch.allclose(folded(traced.module)(images), expected, atol=1e-6)
        assert torch.allclose(merged(images), expected, atol=1e-5)
    assert certify(relaxed, merged, images).ok


def test_a_norm_with_a_hook_is_not_folded() -> None:
    model, images = chain(nn.Conv2d, nn.BatchNorm2d), torch.randn(2, 3, 16, 16)
    model[1].register_forward_hook(lambda _module, _inputs, output: output + 1)
    traced = trace_network(model, images)
    merged = collapse(relax(model, traced.graph, MergePlan.of(traced.graph, [])))
    with torch.no_grad():
        assert torch.allclose(merged(images), model(images), atol=1e-5)


def test_a_plain_norm_is_folded() -> None:
    """What the others must not be: the check can tell."""
    traced = trace_network(nets.plain_chain(), nets.example())
    merged = collapse(relax(nets.plain_chain(), traced.graph, MergePlan.of(traced.graph, [])))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in merged.modules())
