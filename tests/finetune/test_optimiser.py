"""Which parameters weight decay shrinks: told by a step without any gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trt_layermerge.finetune.optimiser import make_optimiser
from trt_layermerge.finetune.recipe import FinetuneRecipe


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("everything", [False, True])
def test_bn_and_biases_do_not_decay_unless_asked_for(optimiser: str, everything: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    recipe = FinetuneRecipe(
        optimiser=optimiser,  # type: ignore[arg-type]
        lr=0.1,
        weight_decay=0.5,
        decay_bn_bias=everything,
        momentum=0.0,
        nesterov=False,
    )
    for parameter in network.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    make_optimiser(network, recipe).step()
    shrunk = {
        name
        for name, parameter in network.named_parameters()
        if torch.allclose(parameter, torch.full_like(parameter, 0.95))
    }
    left = {name for name, p in network.named_parameters() if torch.equal(p, torch.ones_like(p))}
    weights = {"0.weight", "3.weight"}
    flat = {"0.bias", "1.weight", "1.bias", "3.bias"}
    assert (shrunk, left) == ((weights | flat, set()) if everything else (weights, flat))
