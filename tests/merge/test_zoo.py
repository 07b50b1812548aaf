"""Published architectures and the shipped networks, random plans: collapsed equals relaxed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import timm
import torch
import torchvision
from pytest import mark
from safetensors.torch import load_file
from torch import nn

from tests import nets
from tests.plans import random_plan
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.merge import certify, collapse, reestimate_bn, relax
from trt_layermerge.tracing import trace

GLYPHS = Path(__file__).parents[2] / "examples" / "glyphs"
CONVS = {
    "torchvision:resnet18": 20,
    "torchvision:resnet34": 36,
    "torchvision:resnet50": 53,
    "torchvision:mobilenet_v2": 52,
    "torchvision:vgg16_bn": 13,
    "torchvision:regnet_x_400mf": 71,
    "timm:resnet18": 20,
    "timm:mobilenetv2_100": 52,
    "timm:efficientnet_lite0": 49,
    "timm:tf_efficientnet_lite0": 49,
    "timm:repvgg_a0": 22,
    "glyphs:resnet20": 21,
    "glyphs:mobilenet_v2": 34,
}
"""Convolutions of the untouched network once collapsed, counted in the papers' tables."""


def network(name: str) -> tuple[nn.Module, int]:
    """Returns a network, its statistics random or trained, and the size of its input."""
    library, _, model = name.partition(":")
    if library == "glyphs":
        spec = importlib.util.spec_from_file_location("glyph_nets", GLYPHS / "nets.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        trained = getattr(module, model)()
        trained.load_state_dict(load_file(GLYPHS / "weights" / f"{model}.safetensors"))
        return trained.eval(), 32
    if library == "timm":
        return nets.randomise(timm.create_model(model, pretrained=False, num_classes=10)), 64
    made = torchvision.models.get_model(model, weights=None, num_classes=10)
    if model == "vgg16_bn":  # its hidden classifier layers hold 119 million weights
        made.classifier = nn.Linear(512 * 7 * 7, 10)
    return nets.randomise(made), 64


@mark.parametrize("seed", [0, 1])
@mark.parametrize("name", CONVS)
@torch.no_grad()
def test_random_plans_of_published_networks(name: str, seed: int) -> None:
    model, size = network(name)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
    graph = trace(model, x)
    untouched = collapse(relax(model, graph, MergePlan.of(graph, [])))
    assert sum(isinstance(m, nn.Conv2d) for m in untouched.modules()) == CONVS[name]
    error = (untouched(x) - model(x)).abs().max() / model(x).abs().max()
    assert float(error) <= 1e-4  # float32
    plan = random_plan(graph, seed, longest=4, kernels=(1, 2, 3))
    assert len(plan.changed) >= 3
    relaxed = relax(model, graph, plan)
    reestimate_bn(relaxed, [x])
    certificate = certify(relaxed, collapse(relaxed), x)
    # 1e-4 in float32 and 1e-10 in float64, of every block and of the whole network
    assert certificate.ok, certificate.to_json()
