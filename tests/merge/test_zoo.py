"""Published architectures at a small input, untrained: random plans collapse exactly."""

from __future__ import annotations

import timm
import torch
import torchvision
from pytest import mark

from tests import nets
from tests.plans import random_plan
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.merge import certify, collapse, reestimate_bn, relax
from trt_layermerge.trace import trace

MODELS = {
    "resnet18": lambda: torchvision.models.resnet18(weights=None, num_classes=10),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(weights=None, num_classes=10),
    "repvgg_a0": lambda: timm.create_model("repvgg_a0", pretrained=False, num_classes=10),
    "efficientnet_lite0": lambda: timm.create_model(
        "tf_efficientnet_lite0", pretrained=False, num_classes=10
    ),
}
CONVS = {"resnet18": 20, "mobilenet_v2": 52, "repvgg_a0": 22, "efficientnet_lite0": 49}


@mark.parametrize("name", MODELS)
@torch.no_grad()
def test_random_plans_of_published_networks(name):
    model = nets.randomise(MODELS[name]())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    graph = trace(model, x)
    untouched = collapse(relax(model, graph, MergePlan.of(graph, [])))
    convs = sum(isinstance(m, torch.nn.Conv2d) for m in untouched.modules())
    assert convs == CONVS[name]
    error = (untouched(x) - model(x)).abs().max() / model(x).abs().max()
    assert float(error) <= 1e-4  # float32
    plan = random_plan(graph, 0, longest=4, kernels=(1, 2, 3))
    relaxed = relax(model, graph, plan)
    reestimate_bn(relaxed, [x])
    merged = collapse(relaxed)
    certificate = certify(relaxed, merged, x)
    assert certificate.ok, certificate.to_json()
    assert len(plan.changed) >= 8
