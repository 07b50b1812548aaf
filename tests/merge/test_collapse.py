"""Relaxed against collapsed networks, over whole outputs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests import nets
from tests.plans import composed, fitted, random_plan, removed
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.merge import RelaxedNet, collapse, relax
from trt_layermerge.merge.repair import reestimate_bn
from trt_layermerge.merge.segments import record
from trt_layermerge.tracing import trace

F64, F32 = 1e-10, 1e-4  # relative to the largest output, as quality.md promises


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())


def traced(name: str, seed: int = 0) -> tuple[nn.Module, LayerGraph, Tensor]:
    model = nets.FACTORIES[name](seed).double()
    x = nets.example().double()
    return model, trace(model, x), x


def shake(relaxed: RelaxedNet, x: Tensor) -> None:
    """Gives new convolutions sane statistics, so that no value explodes or is left at its start."""
    reestimate_bn(relaxed, [x])


@pytest.mark.parametrize("name", nets.FACTORIES)
@pytest.mark.parametrize("seed", range(5))
@torch.no_grad()
def test_random_plans_collapse_exactly(name, seed):
    model, graph, x = traced(name)
    plan = random_plan(graph, seed)
    assert plan.changed
    relaxed = relax(model, graph, plan)
    shake(relaxed, x)
    merged = collapse(relaxed)
    assert relative_error(merged(x), relaxed(x)) <= F64
    assert relative_error(collapse(relaxed.float())(x.float()), relaxed(x.float())) <= F32


@pytest.mark.parametrize("name", nets.FACTORIES)
def test_every_module_is_in_eval_mode_whatever_the_relaxed_network_is_in(name):
    model, graph, _ = traced(name)
    relaxed = relax(model, graph, random_plan(graph, 0)).train()
    merged = collapse(relaxed)
    assert convs(merged) > 0
    assert [n for n, m in merged.named_modules() if m.training] == []
    assert relaxed.training and all(m.training for m in relaxed.modules())


@pytest.mark.parametrize("name", nets.FACTORIES)
@torch.no_grad()
def test_an_empty_plan_changes_nothing(name):
    model, graph, x = traced(name)
    relaxed = relax(model, graph, MergePlan.of(graph, []))
    assert torch.equal(relaxed(x), model(x))
    merged = collapse(relaxed)
    assert relative_error(merged(x), model(x)) <= F64
    assert not any(isinstance(m, nn.BatchNorm2d) for m in merged.modules())
    assert convs(merged) == MergePlan.of(graph, []).conv_count


def convs(network: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in network.modules())


@pytest.mark.parametrize("name", nets.FACTORIES)
@pytest.mark.parametrize("seed", range(3))
def test_merged_convolutions_have_the_geometry_of_their_candidates(name, seed):
    model, graph, _ = traced(name)
    plan = random_plan(graph, seed)
    merged = collapse(relax(model, graph, plan))
    modules = dict(merged.named_modules())
    for candidate in plan.changed:
        path = f"layermerge.b{candidate.block.start}_{candidate.block.end}"
        if candidate.spec is None:
            assert path not in modules
            continue
        found = [m for m in modules[path].modules() if isinstance(m, nn.Conv2d | nn.ZeroPad2d)]
        assert geometry(found) == stated(candidate.spec)
    assert convs(merged) == plan.conv_count


def geometry(parts: list[nn.Module]) -> tuple[object, ...]:
    """Returns channels, kernel, stride, padding, dilation and groups of [pad,] conv."""
    conv = parts[-1]
    assert isinstance(conv, nn.Conv2d)
    top, left = conv.padding
    padding = (top, left, top, left)
    if len(parts) == 2:
        left, right, top, bottom = parts[0].padding
        padding = (top, left, bottom, right)
    channels = (conv.in_channels, conv.out_channels)
    return (*channels, conv.kernel_size, conv.stride, padding, conv.dilation, conv.groups)


def stated(spec: ConvSpec) -> tuple[object, ...]:
    channels = (spec.in_channels, spec.out_channels)
    return (*channels, spec.kernel, spec.stride, spec.padding, spec.dilation, spec.groups)


def chain(*layers: nn.Module) -> nn.Module:
    return nets.randomise(nn.Sequential(*layers)).double()


@torch.no_grad()
def test_removed_and_kept_parts_by_hand_on_one_channel():
    conv1 = nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=True)
    conv2 = nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=True)
    model = nn.Sequential(conv1, nn.ReLU(), conv2, nn.ReLU()).double().eval()
    conv1.weight.copy_(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
    conv1.bias.fill_(10.0)
    conv2.weight.copy_(torch.tensor([[[[1.0, 0.0, -1.0]]]]))
    conv2.bias.fill_(2.0)
    x = torch.tensor([[[[1.0, -1.0, 2.0]]]]).double()
    graph = trace(model, x)

    def output(candidate):
        relaxed = relax(model, graph, MergePlan.of(graph, [candidate]))
        assert relative_error(collapse(relaxed)(x), relaxed(x)) <= F64
        return relaxed(x).flatten().tolist()

    # conv1 of the zero-padded 0 0 1 -1 2 0 0 without padding and activation: 13 9 15 13 12;
    # conv2 of that: 13-15 9-13 15-12, plus 2, then the ReLU at the end.
    assert output(composed(graph, 0, 2, [0, 1])) == [0.0, 0.0, 5.0]
    # conv1 alone, with the ReLU at the block's end.
    assert output(composed(graph, 0, 2, [0])) == [9.0, 15.0, 13.0]
    # conv2 alone: 0-(-1), 1-2, -1-0, each plus 2.
    assert output(composed(graph, 0, 2, [1])) == [3.0, 1.0, 1.0]
    # conv2 and its activation gone: what conv1 puts out.
    assert output(removed(graph, 1, 2)) == [9.0, 15.0, 13.0]


@torch.no_grad()
def test_hoisted_padding_changes_border_pixels_only():
    layers = [*nets.conv_bn(3, 4, 3), *nets.conv_bn(4, 4, 3), *nets.conv_bn(4, 4, 3)]
    model, x = chain(*layers), nets.example().double()
    graph = trace(model, x)
    relaxed = relax(model, graph, MergePlan.of(graph, [composed(graph, 0, 3, [0, 1, 2])]))
    difference = (relaxed(x) - model(x)).abs()
    inside = difference[:, :, 2:-2, 2:-2]
    assert float(inside.max()) <= F64 * float(model(x).abs().max())
    assert float(difference.max()) > 1e-2


@torch.no_grad()
def test_a_whole_residual_fuses_into_one_convolution():
    model, graph, x = traced("basic_resnet")
    relaxed = relax(model, graph, MergePlan.of(graph, [composed(graph, 1, 3, [1, 2])]))
    merged = collapse(relaxed)
    (block,) = relaxed.blocks.values()
    (value,) = record(relaxed.net, x, [source_name(relaxed, block)]).values()
    pad = nn.functional.pad(value, (2, 2, 2, 2))
    unit1, unit2 = block.unit(1), block.unit(2)
    assert relative_error(block(value), unit2(unit1(pad)) + value) <= F64
    conv = merged.get_submodule("layermerge.b1_3")
    assert conv.kernel_size == (5, 5)
    assert relative_error(conv(value), block(value)) <= F64


def source_name(relaxed: RelaxedNet, block: nn.Module) -> str:
    for node in relaxed.net.graph.find_nodes(op="call_module"):
        if relaxed.net.get_submodule(node.target) is block:
            return node.all_input_nodes[0].name
    raise AssertionError


class Nested(nn.Module):
    """A residual inside a residual, both strided nowhere, the outer with a 3x3 projection."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(*nets.conv_bn(4, 6, 3))
        self.second = nn.Sequential(*nets.conv_bn(6, 6, 5))
        self.third = nn.Sequential(*nets.conv_bn(6, 6, 3))
        self.projection = nn.Sequential(*nets.conv_bn(4, 6, 3))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.first(x))
        y = self.relu(self.second(y) + y)
        return self.relu(self.third(y) + self.projection(x))


@pytest.mark.parametrize("kept", [[0, 1, 2], [0, 1], [0, 2], [0]])
@torch.no_grad()
def test_nested_residuals_collapse_exactly(kept):
    model = chain(Nested(), nn.Conv2d(6, 4, 1))
    x = nets.example(4).double()
    graph = trace(model, x)
    assert len(graph.residuals) == 2
    candidate = composed(graph, 0, 3, kept)
    relaxed = relax(model, graph, MergePlan.of(graph, [candidate]))
    assert relative_error(collapse(relaxed)(x), relaxed(x)) <= F64
    assert candidate.convs[0].kernel == (1 + sum((2, 4, 2)[i] for i in kept),) * 2


@torch.no_grad()
def test_a_strided_residual_with_projection_fuses():
    model, graph, x = traced("basic_resnet")
    candidate = composed(graph, 3, 5, [3, 4])
    assert candidate.convs[0].stride == (2, 2) and candidate.convs[0].kernel == (7, 7)
    relaxed = relax(model, graph, MergePlan.of(graph, [candidate]))
    merged = collapse(relaxed)
    assert relative_error(merged(x), relaxed(x)) <= F64
    assert convs(merged) == convs(model) - 2


@torch.no_grad()
def test_an_open_residual_keeps_its_addition_and_takes_over_the_activation():
    model, graph, x = traced("mobile")
    residual = graph.residuals[0]
    inner = composed(
        graph, residual.start + 1, residual.end, range(residual.start + 1, residual.end)
    )
    assert inner.activation == "relu6" and inner.convs[0].residual
    relaxed = relax(model, graph, MergePlan.of(graph, [inner]))
    assert relative_error(collapse(relaxed)(x), relaxed(x)) <= F64
    name = f"layermerge_{next(iter(relaxed.blocks))}_activation"
    out = record(relaxed.net, x, [name])[name]
    assert float(out.min()) == 0.0 and float(out.max()) <= 6.0


@torch.no_grad()
def test_a_removed_branch_leaves_nothing_but_its_shortcut():
    model, graph, x = traced("mobile")
    residual = graph.residuals[-1]
    relaxed = relax(
        model, graph, MergePlan.of(graph, [removed(graph, residual.start, residual.end)])
    )
    wanted = copy.deepcopy(model)
    wanted[3] = nn.Identity()
    assert relative_error(relaxed(x), wanted(x)) <= F64
    assert relative_error(collapse(relaxed)(x), wanted(x)) <= F64


@torch.no_grad()
def test_a_removed_branch_beside_a_projection_leaves_the_projection_and_the_activation():
    model, graph, x = traced("basic_resnet")
    candidate = removed(graph, 3, 5)
    assert candidate.activation == "relu"
    relaxed = relax(model, graph, MergePlan.of(graph, [candidate]))
    wanted = copy.deepcopy(model)
    wanted[2] = nn.Sequential(model[2].shortcut, nn.ReLU())
    assert relative_error(relaxed(x), wanted(x)) <= F64
    assert relative_error(collapse(relaxed)(x), wanted(x)) <= F64


@torch.no_grad()
def test_a_removed_unit_of_a_branch_leaves_the_addition():
    model, graph, x = traced("basic_resnet")
    relaxed = relax(model, graph, MergePlan.of(graph, [removed(graph, 2, 3)]))
    wanted = copy.deepcopy(model)
    wanted[1].conv2, wanted[1].bn2 = nn.Identity(), nn.Identity()
    assert relative_error(relaxed(x), wanted(x)) <= F64
    assert relative_error(collapse(relaxed)(x), wanted(x)) <= F64


@torch.no_grad()
def test_untouched_multi_branch_units_become_one_convolution():
    model, graph, x = traced("repvgg_like")
    merged = collapse(relax(model, graph, MergePlan.of(graph, [])))
    assert convs(merged) == 3 < convs(model)
    assert relative_error(merged(x), model(x)) <= F64


@torch.no_grad()
def test_collapsing_leaves_the_relaxed_network_untouched():
    model, graph, x = traced("mobile")
    relaxed = relax(model, graph, random_plan(graph, 1))
    before, output = copy.deepcopy(relaxed.state_dict()), relaxed(x)
    collapse(relaxed)
    assert torch.equal(relaxed(x), output)
    assert all(torch.equal(before[k], v) for k, v in relaxed.state_dict().items())


@torch.no_grad()
def test_collapsing_in_training_mode_uses_the_running_statistics():
    model, graph, x = traced("basic_resnet")
    relaxed = relax(model, graph, random_plan(graph, 2)).train()
    merged = collapse(relaxed)
    assert relaxed.training and not merged.training
    assert relative_error(merged(x), relaxed.eval()(x)) <= F64


@torch.no_grad()
def test_fitted_blocks_of_even_kernels_are_padded_unevenly():
    model, graph, x = traced("basic_resnet")
    relaxed = relax(model, graph, MergePlan.of(graph, [fitted(graph, 1, 3, 2)]))
    merged = collapse(relaxed)
    parts = dict(merged.get_submodule("layermerge.b1_3").named_children())
    assert isinstance(parts["pad"], nn.ZeroPad2d) and parts["pad"].padding == (0, 1, 0, 1)
    assert relative_error(merged(x), relaxed(x)) <= F64
