"""Parts that are no residual branches, left out or replaced, against networks edited by hand."""

from __future__ import annotations

from os.path import commonpath

import pytest
import torch
from torch import Tensor, nn

from tests import nets
from tests.merge.test_branches import assert_merges, images, network
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Branch
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.merge import collapse, relax, repair
from trt_layermerge.tracing import trace
from trt_layermerge.tracing.activations import activation_module


def build(name: str) -> nn.Module:
    if name != "googlenet":
        return network(name)
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    return nets.randomise(models.googlenet(init_weights=False, aux_logits=False)).double()


def module_of(graph: LayerGraph, part: Branch) -> str:
    """Returns the module that all convolutions of a part lie in."""
    units = [u for u in graph.conv_units if part.start <= u.index < part.end]
    paths = [u.name.rpartition(".")[0].replace(".", "/") for u in units]
    return commonpath(paths or [""]).replace("/", ".")


def candidate_of(graph: LayerGraph, module: str, kind: str) -> Candidate:
    """Returns the replacement of a module as a whole, of the smallest kernel."""
    parts = [b for b in (*graph.wholes, *graph.branches) if module_of(graph, b) == module]
    part = max(parts, key=lambda b: b.end - b.start)
    found = [c for c in enumerate_candidates(graph) if c.kind == kind and not c.original]
    return next(c for c in found if (c.block.start, c.block.end) == (part.start, part.end))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("mobilenetv3_small_050", "blocks.2.0"),
        ("ghostnet_050", "blocks.1.0.ghost1"),
        ("mixnet_s", "blocks.2.0"),
        ("mobilevit_xxs", "stages.2.1"),
        ("googlenet", "inception3a"),
    ],
)
def test_a_module_becomes_one_convolution(name: str, module: str) -> None:
    model, edited = build(name), build(name)
    graph = trace(model, images())
    candidate = candidate_of(graph, module, "fit")
    plan = MergePlan.of(graph, [candidate])
    (block,) = relax(model, graph, plan).blocks.values()
    act = activation_module(candidate.activation) if candidate.activation else nn.Identity()
    edited.set_submodule(module, nn.Sequential(block.collapsed(), act).eval())
    assert_merges(model, graph, plan, edited(images(seed=1)))


@torch.no_grad()
def test_gates_are_left_out_one_and_all() -> None:
    model, edited = build("mobilenetv3_small_050"), build("mobilenetv3_small_050")
    graph = trace(model, images())
    gates = [b for b in graph.branches if module_of(graph, b).endswith(".se")]
    assert len(gates) == 9
    for gate in gates:
        edited.set_submodule(module_of(graph, gate), nn.Identity())
    chosen = [candidate_of(graph, module_of(graph, gate), "identity") for gate in gates]
    assert_merges(model, graph, MergePlan.of(graph, chosen), edited(images(seed=1)))


@torch.no_grad()
def test_a_block_of_attention_is_left_out() -> None:
    model, edited = build("mobilevit_xxs"), build("mobilevit_xxs")
    graph = trace(model, images())
    candidate = candidate_of(graph, "stages.2.1", "identity")
    edited.set_submodule("stages.2.1", nn.Identity())
    assert_merges(model, graph, MergePlan.of(graph, [candidate]), edited(images(seed=1)))


@torch.no_grad()
def test_the_fit_of_a_linear_region_is_exact_without_padding_too() -> None:
    """Two strided convolutions side by side are one; what is fitted sees the same pixels."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.left, self.right = nn.Conv2d(4, 3, 3, 2), nn.Conv2d(4, 2, 3, 2)
            self.head = nn.Conv2d(5, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            return self.head(torch.cat([self.left(x).flip(1), self.right(x)], 1))

    model = nets.randomise(Beside()).double()
    example = nets.example(size=13).double()
    graph = trace(model, example)
    found = [c for c in enumerate_candidates(graph) if c.kind == "fit" and len(c.block) > 2]
    (fit,) = (c for c in found if c.convs[0].kernel == (3, 3))
    assert (fit.convs[0].stride, fit.convs[0].padding) == ((2, 2), (0, 0, 0, 0))
    relaxed = relax(model, graph, MergePlan.of(graph, [fit]))
    repair(relaxed, model, [nets.example(size=13, batch=32, seed=2).double()])
    merged, wanted = collapse(relaxed), model(example)
    assert (merged(example) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
