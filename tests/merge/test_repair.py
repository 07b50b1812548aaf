"""Least squares against what is known: exact fits, optimality, borders, statistics, sequence."""

from __future__ import annotations

import copy
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import nets
from tests.merge.repairing import repair_block
from tests.plans import composed, fitted, random_plan, removed
from trt_layermerge.core.candidate import finish, merged_spec, original_candidate
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Block
from trt_layermerge.errors import UsageError
from trt_layermerge.merge import (
    REPAIRS,
    build_block,
    collapse,
    reestimate_bn,
    relax,
    repair,
)
from trt_layermerge.merge.leastsq import Moments, sample_positions
from trt_layermerge.merge.segments import record
from trt_layermerge.merge.surgery import block_ports
from trt_layermerge.tracing import trace_network

LS = [r for r in REPAIRS if r.startswith("ls-")]


def network(model: nn.Module, x: Tensor):
    return trace_network(model.double(), x.double())


def values(traced, candidate, x: Tensor) -> tuple[Tensor, Tensor]:
    ports = block_ports(traced, candidate)
    found = record(traced.module, x.double(), [ports.source, ports.target])
    return found[ports.source], found[ports.target]


def mse(block: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    with torch.no_grad():
        return float((block(inputs) - targets).square().mean())


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every position of an image is fitted to."""
    monkeypatch.setattr(import_module("trt_layermerge.merge.repair"), "POSITIONS", 1 << 20)


def images(batch: int = 24, size: int = 10) -> Tensor:
    return nets.example(size=size, batch=batch)


@pytest.mark.parametrize(
    ("groups", "stride", "kernel", "padding"),
    [(1, 1, 3, 1), (1, 2, 3, 1), (2, 1, 3, 1), (8, 1, 3, 1), (8, 2, 5, 2), (1, 1, 1, 0)],
)
@torch.no_grad()
def test_a_convolution_that_exists_is_recovered(groups, stride, kernel, padding):
    conv = nn.Conv2d(8, 8, kernel, stride, padding, groups=groups)
    model = nets.randomise(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Tanh(), conv, nn.ReLU()))
    traced = network(model, images())
    block = Block(1, 2)
    spec = merged_spec(traced.graph, block, (1,))
    candidate = finish(traced.graph, block, "fit", (), (spec,))
    inputs, targets = values(traced, candidate, images())
    block = build_block(traced, candidate)
    assert mse(block, inputs, targets) > 1e-2
    repair_block(block, inputs, targets, "ls-zero")
    assert float((block(inputs) - targets).abs().max()) <= 1e-4
    assert float((block.last.conv.weight - conv.weight).abs().max()) <= 1e-4
    scale = block.last.norm.weight / (block.last.norm.running_var + block.last.norm.eps).sqrt()
    assert float((scale - 1).abs().max()) <= 1e-9


@torch.no_grad()
def test_the_normal_equations_hold_by_hand():
    conv = nn.Conv2d(1, 1, 1).double()
    x = torch.tensor([0.0, 1.0, 2.0, 3.0]).double().reshape(1, 1, 1, 4)
    y = torch.tensor([1.0, 3.0, 4.0, 8.0]).double().reshape(1, 1, 1, 4)
    moments = Moments(conv)
    moments.add(x, y, sample_positions(y, y[0, 0].numel(), torch.Generator()))
    solution = moments.solve(0.0)
    # Slope 11 / 5 and intercept 4 - 1.5 * 2.2 of the regression line.
    assert solution.weight.item() == pytest.approx(2.2, abs=1e-12)
    assert solution.bias.item() == pytest.approx(0.7, abs=1e-12)
    assert solution.mean.item() == pytest.approx(3.3, abs=1e-12)
    assert solution.variance.item() == pytest.approx(2.2**2 * 1.25, abs=1e-12)
    # Ridge of once the variance halves the slope towards zero, or moves it half way to a prior.
    assert moments.solve(1.0).weight.item() == pytest.approx(1.1, abs=1e-12)
    prior = torch.full_like(conv.weight, 5.0)
    assert moments.solve(1.0, prior).weight.item() == pytest.approx(3.6, abs=1e-12)


@torch.no_grad()
def test_moments_gathered_in_strips_give_the_regression_of_all_samples(monkeypatch):
    """Strips of every width are those of one product; least squares by QR tell the weights."""
    module = import_module("trt_layermerge.merge.leastsq")
    conv = nn.Conv2d(6, 4, 3, groups=2, bias=False).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 6, 9, 9, generator=generator).double() + 3
    y = torch.randn(8, 4, 7, 7, generator=generator).double()
    patches = F.unfold(x, 3).mT.reshape(-1, 2, 27).transpose(0, 1)
    for strip in (4, 26, 27, 512):
        monkeypatch.setattr(module, "STRIP", strip)
        moments = Moments(conv)
        for part in (slice(0, 3), slice(3, 8)):
            positions = sample_positions(y[part], 49, generator)
            moments.add(x[part], y[part], positions)
        assert float((moments.xx - patches.mT @ patches).abs().max()) <= 1e-9
        wanted = y.flatten(2).mT.reshape(-1, 2, 2).transpose(0, 1)
        design = torch.cat([patches, torch.ones_like(patches[..., :1])], 2)
        best = torch.linalg.lstsq(design, wanted).solution
        found = moments.solve(0.0)
        assert float((found.weight.reshape(2, 2, 27).mT - best[:, :-1]).abs().max()) <= 1e-10
        assert float((found.bias.reshape(2, 2) - best[:, -1]).abs().max()) <= 1e-9
        spread = (patches @ best[:, :-1]).var(1, correction=0)
        assert float((found.variance.reshape(2, 2) - spread).abs().max()) <= 1e-10


@pytest.mark.parametrize("method", LS)
@pytest.mark.parametrize("name", ["plain_chain", "basic_resnet", "mobile", "odd_chain"])
@torch.no_grad()
def test_every_fit_improves_on_the_start(method, name):
    traced = network(nets.FACTORIES[name](), images())
    for candidate in random_plan(traced.graph, 5, longest=4).changed:
        inputs, targets = values(traced, candidate, images())
        block = build_block(traced, candidate)
        if block.last is None:
            continue
        before = mse(block, inputs, targets)
        repair_block(block, inputs, targets, method)
        after = mse(block, inputs, targets)
        # Rescaled to the target's variance, a prediction errs at most twice what the mean does.
        spread = float(targets.var(dim=(0, 2, 3), correction=0).mean())
        worst = 2.1 * spread if method == "ls-variance" else before
        assert after <= worst + 1e-9 * spread


@pytest.mark.usefixtures("everywhere")
@torch.no_grad()
def test_no_other_weights_fit_better():
    x = images(batch=16)
    traced = network(nets.basic_resnet(), x)
    candidate = composed(traced.graph, 1, 3, [1, 2])
    inputs, targets = values(traced, candidate, x)
    block = build_block(traced, candidate)
    repair_block(block, inputs, targets, "ls-zero")
    best = mse(block, inputs, targets)
    generator = torch.Generator().manual_seed(0)
    for parameter in (block.last.conv.weight, block.last.norm.bias):
        for _ in range(5):
            step = 1e-2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(step)
            assert mse(block, inputs, targets) > best
            parameter.sub_(step)


@pytest.mark.usefixtures("everywhere")
@torch.no_grad()
def test_matched_variance():
    x = images(batch=2)
    traced = network(nets.basic_resnet(), x)
    candidate = fitted(traced.graph, 1, 3, 1)
    inputs, targets = values(traced, candidate, x)
    plain, matched = build_block(traced, candidate), build_block(traced, candidate)
    repair_block(plain, inputs, targets, "ls-zero")
    repair_block(matched, inputs, targets, "ls-variance")
    wanted = targets.var(dim=(0, 2, 3), correction=0)
    assert bool((plain(inputs).var(dim=(0, 2, 3), correction=0) < 0.99 * wanted).all())
    found = matched(inputs)
    assert torch.allclose(found.var(dim=(0, 2, 3), correction=0), wanted, rtol=1e-6)
    assert torch.allclose(found.mean((0, 2, 3)), targets.mean((0, 2, 3)), atol=1e-9)


@torch.no_grad()
def test_the_pull_to_the_identity_wins_where_images_are_scarce():
    traced = network(nets.basic_resnet(), images())
    candidate = fitted(traced.graph, 5, 7, 5)
    few, many = images(batch=1, size=10), nets.example(size=10, batch=24, seed=9)
    errors = {}
    for method in ("ls-zero", "ls-identity"):
        block = build_block(traced, candidate)
        repair_block(block, *values(traced, candidate, few), method)
        errors[method] = mse(block, *values(traced, candidate, many))
    assert errors["ls-identity"] < errors["ls-zero"]


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("method", LS)
@torch.no_grad()
def test_train_mode_agrees_with_eval_mode_after_a_fit(method):
    x = images(batch=16)
    traced = network(nets.plain_chain(), x)
    candidate = fitted(traced.graph, 1, 3, 3)
    inputs, targets = values(traced, candidate, x)
    block = build_block(traced, candidate)
    repair_block(block, inputs, targets, method)
    expected = block(inputs)
    trained = block.train()(inputs)
    # The batch statistics are those that the fit found.
    assert float((trained - expected).abs().max()) <= 1e-9 * float(expected.abs().max())


@torch.no_grad()
def test_border_patches_are_sampled():
    image, row, column = sample_positions(
        torch.zeros(200, 1, 6, 7), 16, torch.Generator().manual_seed(0)
    )
    assert len(image) == 200 * 16
    assert {(0, 0), (5, 6), (0, 6), (5, 0)} <= set(zip(row.tolist(), column.tolist(), strict=True))
    drawn = set(zip(image.tolist(), row.tolist(), column.tolist(), strict=True))
    assert len(drawn) == 200 * 16


@torch.no_grad()
def test_sampling_is_seeded_and_close_to_the_fit_on_every_position():
    traced = network(nets.plain_chain(), images(batch=64))
    candidate = fitted(traced.graph, 1, 3, 1)
    inputs, targets = values(traced, candidate, images(batch=64))
    assert targets[:, 0].numel() > 64 * 16
    blocks = [build_block(traced, candidate) for _ in range(3)]
    for block, seed in zip(blocks, (0, 0, 1), strict=True):
        repair_block(block, inputs, targets, "ls-zero", seed)
    outputs = [b(inputs) for b in blocks]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert mse(blocks[0], inputs, targets) < 1.05 * mse(blocks[2], inputs, targets)


@torch.no_grad()
def test_running_statistics_become_those_of_the_inputs():
    traced = network(nets.plain_chain(), images())
    block = build_block(traced, composed(traced.graph, 1, 3, [1, 2]))
    inputs, targets = values(traced, block.candidate, images())
    weights = copy.deepcopy(block.unit(1).conv.weight)
    repair_block(block, inputs, targets, "bn")
    produced = block.unit(1).conv(F.pad(inputs, (2, 2, 2, 2)))
    assert torch.allclose(block.unit(1).norm.running_mean, produced.mean((0, 2, 3)), atol=1e-10)
    assert torch.allclose(block.unit(1).norm.running_var, produced.var((0, 2, 3)), rtol=1e-6)
    assert torch.equal(block.unit(1).conv.weight, weights)
    assert block.unit(1).norm.momentum == 0.1 and not block.training


@torch.no_grad()
def test_nothing_happens_on_request_or_where_nothing_can_be_fitted():
    traced = network(nets.basic_resnet(), images())
    for candidate in (removed(traced.graph, 1, 3), composed(traced.graph, 1, 3, [1, 2])):
        block = build_block(traced, candidate)
        before = copy.deepcopy(block.state_dict())
        inputs, targets = values(traced, candidate, images())
        repair_block(block, inputs, targets, "none" if candidate.convs else "ls-zero")
        assert all(torch.equal(before[k], v) for k, v in block.state_dict().items())
    with pytest.raises(UsageError, match="unknown repair 'best'"):
        repair_block(block, inputs, targets, "best")


def two_blocks(graph) -> MergePlan:
    return MergePlan.of(graph, [fitted(graph, 1, 3, 1), fitted(graph, 3, 5, 3)])


@torch.no_grad()
def test_fits_in_sequence_beat_fits_in_isolation():
    model, x = nets.basic_resnet().double(), images(batch=64).double()
    traced = network(model, x)
    plan = two_blocks(traced.graph)
    sequential, isolated = (relax(model, traced.graph, plan) for _ in range(2))
    repair(sequential, model, x.split(16))
    for block in isolated.blocks.values():
        repair_block(block, *values(traced, block.candidate, x), "ls-zero")
    out = traced.graph.units[4].nodes.out
    mine, other, wanted = (
        record(net, x, [out])[out] for net in (sequential.net, isolated.net, traced.module)
    )
    errors = [float((values - wanted).square().mean()) for values in (mine, other)]
    assert errors[0] < 0.99 * errors[1]


@torch.no_grad()
def test_repair_takes_methods_by_key_and_batches_with_labels():
    model, x = nets.basic_resnet(), images(batch=32)
    graph = network(model, x).graph
    model = model.float()
    plan = two_blocks(graph)
    first, _ = plan.changed
    relaxed, reference = relax(model, graph, plan), relax(model, graph, plan)
    repair(relaxed, model, [(x, torch.zeros(32))], {first.key: "none"})
    kept, fitted_block = relaxed.blocks.values()
    start, other = reference.blocks.values()
    assert torch.equal(kept.last.conv.weight, start.last.conv.weight)
    assert not torch.equal(fitted_block.last.conv.weight, other.last.conv.weight)
    merged = collapse(relaxed)
    error = float((merged(x) - relaxed(x)).abs().max() / relaxed(x).abs().max())
    assert error <= 1e-4  # float32
    with pytest.raises(UsageError, match="needs calibration images"):
        repair(relaxed, model, [])


@torch.no_grad()
def test_an_untouched_unit_is_recovered_from_any_start():
    traced = network(nets.basic_resnet(), images())
    candidate = original_candidate(traced.graph, 2)
    inputs, targets = values(traced, candidate, images())
    block = build_block(traced, candidate)
    block.last.conv.weight.zero_()
    repair_block(block, inputs, targets, "ls-zero")
    assert float((block(inputs) - targets).abs().max()) <= 1e-4


@torch.no_grad()
def test_reestimation_averages_over_batches_and_restores_modes():
    norm = nn.BatchNorm2d(2)
    model = nn.Sequential(nn.Dropout(0.5), norm).train()
    model[0].eval()
    batches = [torch.randn(4, 2, 3, 3) for _ in range(3)]
    reestimate_bn(model, [(b, None) for b in batches])
    mean = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    assert torch.allclose(norm.running_mean, mean, atol=1e-6)
    assert norm.training and not model[0].training and norm.momentum == 0.1


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(4, 1), (1, 1)])
def test_batches_of_one_pixel_tell_no_variance(sizes):
    norm = nn.BatchNorm2d(2)
    norm.running_var.fill_(3.0)
    batches = [torch.randn(size, 2, 1, 1) for size in sizes]
    reestimate_bn(nn.Sequential(norm), batches)
    expected = torch.full((2,), 3.0) if sizes[0] == 1 else batches[0].var((0, 2, 3))
    assert torch.allclose(norm.running_var, expected)
