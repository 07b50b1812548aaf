"""The relaxed network: its copy, its ports, its refusals, its training and its state."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save
from torch.nn import functional as F

from tests import nets
from tests.plans import composed, fitted, random_plan, removed
from trt_layermerge.core.candidate import original_candidate
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Block
from trt_layermerge.errors import UnsupportedModelError, UsageError
from trt_layermerge.merge import build_block, relax
from trt_layermerge.merge.relax import retrace
from trt_layermerge.merge.surgery import block_ports
from trt_layermerge.tracing import trace, trace_network


def traced(name: str = "basic_resnet"):
    model, x = nets.FACTORIES[name](), nets.example()
    return model, trace(model, x), x


@pytest.mark.parametrize("name", nets.FACTORIES)
def test_the_model_is_left_untouched_in_every_respect(name):
    model, graph, _ = traced(name)
    model.train()
    before = copy.deepcopy(model.state_dict())
    relaxed = relax(model, graph, random_plan(graph, 0))
    with torch.no_grad():
        for tensor in relaxed.state_dict().values():
            tensor.zero_()
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", nets.FACTORIES)
def test_what_was_traced_once_serves_many_plans_and_stays_as_it_is(name):
    model, graph, x = traced(name)
    once = retrace(model, graph)
    for seed in range(2):
        plan = random_plan(graph, seed)
        relaxed, anew = relax(once, graph, plan), relax(model, graph, plan)
        assert relaxed.state_dict().keys() == anew.state_dict().keys()
        assert torch.equal(relaxed(x), anew(x))
        with torch.no_grad():
            for tensor in relaxed.state_dict().values():
                tensor.zero_()


def test_what_was_traced_of_another_network_is_refused():
    _, graph, _ = traced()
    other, others, _ = traced("mobile")
    with pytest.raises(UsageError, match="another graph's"):
        relax(retrace(other, others), graph, MergePlan.of(graph, []))


@pytest.mark.parametrize("name", nets.FACTORIES)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_every_convolution_at_any_batch_size(name, training):
    model, graph, _ = traced(name)
    relaxed = relax(model, graph, random_plan(graph, 0, longest=3)).train(training)
    relaxed(nets.example(batch=5)).square().sum().backward()
    # In training mode, batch normalisation cancels the bias of the convolution before it.
    wanted = [(n, p) for n, p in relaxed.named_parameters() if p.dim() == 4 or not training]
    assert [n for n, p in wanted if p.grad is None or not p.grad.any()] == []


def test_a_few_steps_of_training_lower_the_loss():
    model, graph, x = traced()
    relaxed = relax(model, graph, random_plan(graph, 1)).train()
    optimizer = torch.optim.SGD(relaxed.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(relaxed(x), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", nets.FACTORIES)
@torch.no_grad()
def test_the_state_travels_through_safetensors(name):
    model, graph, x = traced(name)
    plan = random_plan(graph, 3)
    trained = relax(model, graph, plan)
    for parameter in trained.parameters():
        parameter.add_(0.1)
    fresh = relax(model, graph, plan)
    assert not torch.equal(fresh(x), trained(x))
    fresh.load_state_dict(load(save(trained.state_dict())))
    assert torch.equal(fresh(x), trained(x))


def test_new_convolutions_start_the_same_every_time():
    model, graph, x = traced()
    plan = MergePlan.of(graph, [fitted(graph, 1, 3, 3)])
    assert torch.equal(relax(model, graph, plan)(x), relax(model, graph, plan)(x))


def test_a_deep_copy_computes_the_same():
    model, graph, x = traced("mobile")
    relaxed = relax(model, graph, random_plan(graph, 0))
    assert not relaxed.training
    assert torch.equal(copy.deepcopy(relaxed)(x), relaxed(x))


def test_nothing_of_replaced_units_stays():
    model, graph, _ = traced("plain_chain")
    relaxed = relax(model, graph, MergePlan.of(graph, [removed(graph, 1, 2)]))
    assert list(relaxed.blocks) == ["b1_2"]
    assert not any(k.startswith("net.3.") for k in relaxed.state_dict())


def test_ports_of_open_and_closed_residuals():
    model, x = nets.mobile(), nets.example()
    network = trace_network(model, x)
    graph = network.graph
    residual = graph.residuals[0]
    units, (start, end) = graph.units, (residual.start, residual.end)
    whole = block_ports(network, composed(graph, start, end, range(start, end)))
    assert whole.source == units[start - 1].nodes.out
    assert whole.target == whole.total == units[end - 1].nodes.sum
    inner = block_ports(network, composed(graph, start + 1, end, range(start + 1, end)))
    assert inner.source == units[start].nodes.out
    assert (inner.target, inner.total) == (units[end - 1].nodes.branch, units[end - 1].nodes.sum)
    gone = block_ports(network, removed(graph, start, end))
    assert gone.target == gone.out == units[end - 1].nodes.out
    first = block_ports(network, original_candidate(graph, 0))
    assert first.source == next(iter(network.module.graph.nodes)).name


@torch.no_grad()
def test_a_block_of_its_own_computes_what_stands_between_its_ports():
    model, x = nets.basic_resnet().double(), nets.example().double()
    network = trace_network(model, x)
    block = build_block(network, original_candidate(network.graph, 1))
    value = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    expected = model[1].bn1(model[1].conv1(value))
    assert float((block(value) - expected).abs().max()) <= 1e-10


def test_the_graph_of_another_model_is_refused():
    _, graph, _ = traced()
    with pytest.raises(UsageError, match="is not that of this"):
        relax(nets.plain_chain(), graph, MergePlan.of(graph, []))
    changed = nets.basic_resnet(seed=5)
    relax(changed, graph, MergePlan.of(graph, []))


def test_a_plan_with_gaps_is_refused():
    model, graph, _ = traced()
    with pytest.raises(UsageError, match="plan covers"):
        relax(model, graph, MergePlan(MergePlan.of(graph, []).candidates[:-1]))


def test_an_inexact_candidate_is_refused_with_its_reason():
    model, graph, _ = traced()
    wrong = composed(graph, 1, 3, [1, 2])
    wrong = replace(wrong, convs=(replace(wrong.convs[0], kernel=(3, 3)),))
    with pytest.raises(UnsupportedModelError, match="not the stated convolution"):
        relax(model, graph, MergePlan.of(graph, [wrong]))
    with pytest.raises(UnsupportedModelError, match="not within one segment"):
        build_block(trace_network(nets.branching(), nets.example()), crossing())


def crossing():
    graph = trace(nets.branching(), nets.example())
    end = graph.segments[0].end
    return replace(original_candidate(graph, 0), block=Block(0, end + 1), original=False)
