"""A certificate passes what is exact and fails what is not."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from tests import nets
from tests.plans import composed, random_plan, removed
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import UsageError
from trt_layermerge.merge import certify, collapse, reestimate_bn, relax
from trt_layermerge.tracing import trace


def prepared(name: str, dtype: torch.dtype = torch.float32):
    model, x = nets.FACTORIES[name]().to(dtype), nets.example().to(dtype)
    graph = trace(model, x)
    relaxed = relax(model, graph, random_plan(graph, 1))
    reestimate_bn(relaxed, [x])
    return relaxed, x


@pytest.mark.parametrize("name", nets.FACTORIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_merges_pass(name, dtype):
    relaxed, x = prepared(name, dtype)
    merged = collapse(relaxed)
    certificate = certify(relaxed, merged, x)
    assert certificate.ok
    assert certificate.max_rel_error <= (1e-4 if dtype == torch.float32 else 1e-10)
    names = [c.block for c in certificate.checks if c.dtype == "float64"]
    assert names == ["network", *relaxed.blocks, "weights"]
    assert all(c.tolerance == 1e-10 for c in certificate.checks[:-1] if c.dtype == "float64")
    assert json.loads(json.dumps(certificate.to_json()))["ok"] is True
    assert next(merged.parameters()).dtype == next(relaxed.parameters()).dtype == dtype


@pytest.mark.parametrize("factor", [10.0, 1.01])
def test_a_wrong_eps_fails(factor):
    relaxed, x = prepared("basic_resnet")
    wrong = copy.deepcopy(relaxed)
    for module in wrong.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps *= factor
    certificate = certify(relaxed, collapse(wrong), x)
    assert not certificate.ok
    assert certificate.to_json()["ok"] is False


def test_one_changed_weight_fails_and_its_block_is_named():
    relaxed, x = prepared("plain_chain")
    merged = collapse(relaxed)
    key = next(k for k, b in relaxed.blocks.items() if b.candidate.convs)
    with torch.no_grad():
        next(merged.get_submodule(f"layermerge.{key}").parameters()).view(-1)[0] += 0.01
    failed = [c.block for c in certify(relaxed, merged, x).checks if not c.ok]
    assert key in failed and "weights" in failed


def test_values_that_are_no_numbers_fail():
    relaxed, x = prepared("plain_chain")
    merged = collapse(relaxed)
    with torch.no_grad():
        next(merged.parameters()).fill_(float("nan"))
    assert not certify(relaxed, merged, x).ok


def test_another_network_fails():
    relaxed, x = prepared("plain_chain")
    assert not certify(relaxed, nets.plain_chain(seed=3), x).ok


def test_half_precision_is_refused():
    relaxed, x = prepared("plain_chain")
    with pytest.raises(UsageError, match="float32"):
        certify(relaxed.half(), relaxed, x)


def test_a_further_normalisation_behind_a_block_is_no_part_of_it() -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    model = nets.randomise(nn.Sequential(*layers, nn.MaxPool2d(2), nn.Conv2d(4, 4, 3))).double()
    x = nets.example().double()
    graph = trace(model, x)
    relaxed = relax(model, graph, MergePlan.of(graph, [composed(graph, 0, 2, (0, 1))]))
    assert certify(relaxed, collapse(relaxed), x).ok


def test_a_network_of_which_nothing_with_weights_is_left_is_certified() -> None:
    model = nets.randomise(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.MaxPool2d(2)))
    graph = trace(model, nets.example())
    relaxed = relax(model, graph, MergePlan.of(graph, [removed(graph, 0, 1)]))
    assert certify(relaxed, collapse(relaxed), nets.example()).ok
