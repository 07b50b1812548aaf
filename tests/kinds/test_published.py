"""The published counts, from torch networks to candidates (LayerMerge, ICML 2024, appendix)."""

from __future__ import annotations

import pytest
import torch
import torchvision

import trt_layermerge as tlm
from trt_layermerge.kinds import refusal


@pytest.mark.parametrize(
    ("name", "blocks", "entries"),
    [("resnet34", 62, 150), ("resnet50", 107, 192), ("mobilenet_v2", 171, 391)],
)
def test_torchvision_networks_give_the_published_counts(
    name: str, blocks: int, entries: int
) -> None:
    model = torchvision.models.get_model(name, weights=None)
    graph = tlm.trace(model, torch.zeros(1, 3, 224, 224))
    candidates = tlm.enumerate_candidates(graph, rules="paper")
    assert len(graph.blocks(rules="paper")) == blocks
    assert len(candidates) == entries
    assert all(refusal(graph, c) is None for c in candidates)
