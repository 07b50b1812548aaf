"""Reconstruction: what it lowers, what it leaves alone, and that its slices are the network's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests import nets
from tests.plans import composed, fitted, random_plan
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import UsageError
from trt_layermerge.merge import (
    Reconstruction,
    RelaxedNet,
    certify,
    collapse,
    match_error,
    matched,
    reconstruct,
    relax,
    repair,
)
from trt_layermerge.merge.matching import places
from trt_layermerge.merge.relax import retrace
from trt_layermerge.merge.surgery import between, outputs_of, tapped
from trt_layermerge.tracing import trace_network

IMAGES = nets.example(size=12, batch=48)
UNSEEN = nets.example(size=12, batch=32, seed=9)


def original(double: bool = True) -> nn.Module:
    model = nets.basic_resnet()
    return model.double() if double else model


def relaxed_net(model: nn.Module, seed: int = 0) -> RelaxedNet:
    dtype = next(model.parameters()).dtype
    graph = trace_network(model, IMAGES[:2].to(dtype)).graph
    return relax(model, graph, random_plan(graph, seed, longest=4))


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


def changed_keys(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {k for k in before if not torch.equal(before[k], after[k])}


@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
def test_what_is_compared_are_the_values_of_the_networks(seed: int) -> None:
    model = original()
    relaxed = relaxed_net(model, seed)
    mine, theirs = matched(relaxed, model)
    x = IMAGES.double()
    found, wanted = mine(x), theirs(x)
    assert torch.equal(found[0], relaxed(x)) and torch.equal(wanted[0], model(x))
    assert [v.shape for v in found] == [v.shape for v in wanted]
    assert len(found) == 1 + len(relaxed.plan.changed)


@torch.no_grad()
def test_an_untouched_network_has_no_error() -> None:
    model = original()
    graph = trace_network(model, IMAGES[:2].double()).graph
    assert match_error(relax(model, graph, MergePlan.of(graph, [])), model, IMAGES) == 0.0
    assert match_error(relaxed_net(model), model, IMAGES) > 1e-3


@torch.no_grad()
def test_a_kept_unit_alone_has_the_values_of_the_original_at_its_end() -> None:
    """A block that replaces a unit by itself: equal values, addition and activation included."""
    model = original()
    graph = trace_network(model, IMAGES[:2].double()).graph
    same = [composed(graph, i, i + 1, [i]) for i in range(1, 5)]
    relaxed = relax(model, graph, MergePlan.of(graph, same))
    assert len(relaxed.plan.changed) == len(same)
    assert match_error(relaxed, model, IMAGES) <= 1e-25  # a square of rounding in float64


@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
def test_the_part_between_two_nodes_continues_the_network(seed: int) -> None:
    model = original()
    relaxed, x = relaxed_net(model, seed), IMAGES.double()
    for place in places(relaxed, retrace(model, relaxed.graph)):
        part, reads = between(relaxed.net, place.call, place.mine)
        inputs = tapped(relaxed.net, reads)(x)
        assert torch.equal(part(*inputs), tapped(relaxed.net, [place.mine])(x)[0])
    part, reads = between(relaxed.net, place.call, outputs_of(relaxed.net)[0])
    assert torch.equal(part(*tapped(relaxed.net, reads)(x)), relaxed(x))


@pytest.mark.parametrize("scope", ["each", "blocks", "network"])
def test_the_error_falls_on_unseen_images_beyond_repair(scope: str) -> None:
    model = original(double=False)
    relaxed = relaxed_net(model)
    repair(relaxed, model, IMAGES.split(16))
    before, error = state(relaxed), match_error(relaxed, model, UNSEEN)
    reconstruct(relaxed, model, IMAGES, Reconstruction(60, lr=3e-3, batch=16, scope=scope))
    assert match_error(relaxed, model, UNSEEN) < 0.9 * error
    moved = changed_keys(before, state(relaxed))
    inside = {k for k in before if ".b" in k and "layermerge" in k}
    assert moved & inside
    assert bool(moved - inside) == (scope == "network")
    assert not any("running" in k or "tracked" in k for k in moved)
    assert all(p.requires_grad and p.grad is None for p in relaxed.parameters())
    assert not relaxed.training


def test_what_was_reconstructed_merges_exactly() -> None:
    model = original(double=False)
    relaxed = relaxed_net(model)
    reconstruct(relaxed, model, IMAGES, Reconstruction(10, batch=16))
    assert certify(relaxed, collapse(relaxed), UNSEEN).ok


def test_the_seed_decides_and_the_original_stays() -> None:
    model = original(double=False)
    kept, results = state(model), []
    for seed in (3, 3, 4):
        relaxed = relaxed_net(model)
        reconstruct(relaxed, model, IMAGES, Reconstruction(5, batch=16, seed=seed))
        results.append(state(relaxed))
    assert changed_keys(results[0], results[1]) == set()
    assert changed_keys(results[0], results[2]) != set()
    assert changed_keys(kept, state(model)) == set()


@pytest.mark.parametrize("scope", ["each", "blocks", "network"])
def test_no_steps_change_nothing(scope: str) -> None:
    model = original(double=False)
    relaxed = relaxed_net(model)
    before = state(relaxed)
    reconstruct(relaxed, model, IMAGES, Reconstruction(0, scope=scope))
    assert changed_keys(before, state(relaxed)) == set()


def test_steps_are_counted_over_all_blocks() -> None:
    model, told = original(double=False), []
    relaxed = relaxed_net(model)
    how = Reconstruction(2, batch=8, scope="each")
    reconstruct(relaxed, model, IMAGES, how, lambda done, total: told.append((done, total)))
    trained = sum(bool(list(b.parameters())) for b in relaxed.blocks.values())
    assert told == [(i + 1, 2 * trained) for i in range(2 * trained)]


def test_a_learning_rate_that_is_too_large_is_told() -> None:
    model = original(double=False)
    relaxed = relaxed_net(model)
    with pytest.raises(UsageError, match=r"diverged .* lower finetune\.reconstruct\.lr"):
        reconstruct(relaxed, model, IMAGES, Reconstruction(60, lr=1e12, batch=8))
    with pytest.raises(UsageError, match="got none"):
        reconstruct(relaxed, model, IMAGES[:0], Reconstruction(1))


def test_a_linear_bottleneck_is_compared_before_its_new_activation() -> None:
    model = nets.randomise(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 3))
    ).double()
    graph = trace_network(model, IMAGES[:2].double()).graph
    candidate = fitted(graph, 0, 2, 1)
    assert candidate.activation == "relu" and graph.units[1].activation is None
    relaxed = relax(model, graph, MergePlan.of(graph, [candidate]))
    with torch.no_grad():
        mine, _ = matched(copy.deepcopy(relaxed), model)
        assert float(mine(IMAGES.double())[1].min()) < 0
