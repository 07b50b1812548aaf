"""Models and inputs that are refused, and models that stay as they were."""

from __future__ import annotations

import copy
from dataclasses import asdict

import pytest
import torch
from torch import nn

import trt_layermerge
from tests import nets
from trt_layermerge.core.graph import load_graph, save_graph
from trt_layermerge.errors import CorruptInputError, UnsupportedModelError
from trt_layermerge.tracing import trace, trace_network


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float) -> None:
    model = nets.plain_chain()
    model[3].weight.data[0, 0, 0, 0] = value
    with pytest.raises(CorruptInputError, match=r"3\.weight"):
        trace(model, nets.example())


def test_statistics_that_are_not_finite() -> None:
    model = nets.plain_chain()
    model[4].running_var[1] = float("nan")
    with pytest.raises(CorruptInputError, match=r"4\.running_var"):
        trace(model, nets.example())


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_a_norm_without_running_statistics(kind: type[nn.Module]) -> None:
    model = nets.plain_chain()
    model[4] = kind(6, affine=False, track_running_stats=False)
    with pytest.raises(UnsupportedModelError, match=r"^4 is a BatchNorm.d without running"):
        trace(model, nets.example())


@pytest.mark.parametrize(("value", "eps"), [(-0.5, 1e-5), (-1e-5, 1e-5), (0.0, 0.0)])
def test_a_variance_that_is_none(value: float, eps: float) -> None:
    model = nets.plain_chain()
    model[4].running_var[1], model[4].eps = value, eps
    with pytest.raises(CorruptInputError, match=r"4\.running_var"):
        trace(model, nets.example())


def test_a_variance_of_zero_is_fine() -> None:
    model = nets.plain_chain()
    model[4].running_var[1] = 0.0
    assert trace(model, nets.example()).units[1].bn == "4"


def test_wrong_channels() -> None:
    with pytest.raises(UnsupportedModelError, match=r"\(2, 1, 16, 17\).*3 channels, but got 1"):
        trace(nets.plain_chain(), nets.example(channels=1))


@pytest.mark.parametrize("bad", [[], "image", (1, 2), torch.empty(0, 3, 16, 16)])
def test_inputs_that_are_none(bad: object) -> None:
    with pytest.raises(UnsupportedModelError, match="example input"):
        trace(nets.plain_chain(), bad)


class Undecided(nn.Module):
    """Its outermost forward depends on values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_control_flow_in_the_model_itself() -> None:
    with pytest.raises(UnsupportedModelError, match="forward of Undecided cannot be traced"):
        trace(Undecided(), nets.example())


class Random(nn.Module):
    """Adds noise although it is in eval mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


def test_random_models() -> None:
    with pytest.raises(UnsupportedModelError, match="random"):
        trace(Random(), nets.example())


def test_scripted_models() -> None:
    scripted = torch.jit.ScriptModule()
    with pytest.raises(UnsupportedModelError, match="TorchScript"):
        trace(scripted, nets.example())


@pytest.mark.parametrize(
    ("wrap", "inside"), [(torch.compile, "_orig_mod"), (nn.DataParallel, "module")]
)
def test_wrapped_models(wrap, inside: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"model\.{inside}"):
        trace(wrap(nets.plain_chain()), nets.example())


def test_hooks_on_the_model_itself() -> None:
    model = nets.plain_chain()
    model.register_forward_hook(lambda module, args, value: value * 2)
    with pytest.raises(UnsupportedModelError, match="hooks"):
        trace(model, nets.example())


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_models_that_cannot_be_copied() -> None:
    model = nets.plain_chain()
    torch.nn.utils.weight_norm(model[3])
    with pytest.raises(UnsupportedModelError, match="remove_weight_norm"):
        trace(model, nets.example())


def test_weights_without_values() -> None:
    with pytest.raises(UnsupportedModelError, match="no values yet"):
        trace(nn.Sequential(nn.LazyConv2d(4, 3)), nets.example())
    with torch.device("meta"):
        empty = nn.Conv2d(3, 4, 3)
    with pytest.raises(UnsupportedModelError, match="no values yet"):
        trace(nn.Sequential(empty), nets.example())


def test_the_model_stays_untouched() -> None:
    model = nets.mobile().train()
    model[0][2].inplace = True
    calls: list[str] = []
    model[1].layers[3].register_forward_hook(lambda module, args, value: calls.append("conv"))
    before = copy.deepcopy(model.state_dict())
    given = nets.example()
    trace(model, given)
    assert model.training and all(m.training for m in model.modules())
    assert model[0][2].inplace
    assert len(model[1].layers[3]._forward_hooks) == 1
    assert torch.equal(given, nets.example())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", nets.FACTORIES)
def test_tracing_twice_gives_the_same_names(name: str) -> None:
    model = nets.FACTORIES[name]()
    first, second = (trace_network(model, nets.example()) for _ in range(2))
    assert [n.name for n in first.module.graph.nodes] == [n.name for n in second.module.graph.nodes]
    assert first.graph == second.graph
    names = {n.name for n in first.module.graph.nodes}
    for unit in first.graph.units:
        assert set(asdict(unit.nodes).values()) <= names
    for unit in first.graph.conv_units:  # pieces have the name of a value
        assert isinstance(model.get_submodule(unit.name), nn.Conv2d)
        assert unit.bn is None or isinstance(model.get_submodule(unit.bn), nn.BatchNorm2d)
    assert all(s.out in names for r in first.graph.residuals for s in r.shortcuts)


def test_the_traced_copy_computes_the_same() -> None:
    model = nets.basic_resnet()
    traced = trace_network(model, nets.example())
    assert not traced.module.training
    fresh = nets.example(seed=5, batch=3)
    assert torch.equal(traced.module(fresh), model(fresh))


def test_graphs_survive_a_file(tmp_path) -> None:
    graph = trace(nets.repvgg_like(), nets.example())
    save_graph(graph, tmp_path / "graph.json")
    assert load_graph(tmp_path / "graph.json") == graph


def test_the_public_name_works_more_than_once() -> None:
    graphs = [trt_layermerge.trace(nets.plain_chain(), nets.example()) for _ in range(2)]
    assert graphs[0] == graphs[1]


def test_exported_programs() -> None:
    program = torch.export.export(nets.plain_chain().eval(), (nets.example(),)).module()
    with pytest.raises(UnsupportedModelError, match=r"torch\.export.*exported from"):
        trace(program, nets.example())
