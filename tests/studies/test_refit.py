from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from studies.refit import RefitScorer, fit_head, same_again
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.importance.calibrate import CalibrateScorer
from trt_layermerge.merge import relax
from trt_layermerge.search import enumerate_candidates
from trt_layermerge.trace import trace

GENERATOR = torch.Generator().manual_seed(0)
FIT, SCORE = (torch.randn(64, 3, 8, 8, generator=GENERATOR) for _ in range(2))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )
    return net.eval()


def test_a_wrong_classifier_is_mended(model: nn.Module) -> None:
    graph = trace(model, FIT[:1])
    network = relax(model, graph, MergePlan.of(graph, [])).eval()
    (head,) = [m for m in network.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        head.weight.mul_(0.5)
        head.bias.add_(1.0)
        before = (network(SCORE) - model(SCORE)).abs().max()
        untouched = copy.deepcopy(model.state_dict())
        fit_head(network, model, [FIT[:32], FIT[32:]])
        after = (network(SCORE) - model(SCORE)).abs().max()
    assert after < 0.1 * before  # the ridge keeps it from the whole way
    assert all((untouched[k] == v).all() for k, v in model.state_dict().items())


def test_fitting_what_follows_makes_a_removal_cheaper(model: nn.Module) -> None:
    graph = trace(model, FIT[:1])
    removal = next(
        c for c in enumerate_candidates(graph, "full") if c.kind == "identity" and c.block.end == 2
    )
    plain = CalibrateScorer(model, graph, FIT, SCORE)
    scores = [
        RefitScorer(plain, model, graph, FIT, SCORE, units, head).entry(removal).delta
        for units, head in ((0, False), (1, False), (1, True))
    ]
    assert scores[0] == pytest.approx(plain.entry(removal).delta, rel=1e-3)
    assert scores[0] < scores[1] < 0
    assert scores[1] < scores[2] < 0


def test_a_unit_again_has_its_own_shape(model: nn.Module) -> None:
    graph = trace(model, FIT[:1])
    again = same_again(graph, 1)
    assert again.kind == "fit" and again.convs[0].bare() == graph.units[1].spec.bare()
