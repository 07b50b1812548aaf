"""Across a group normalisation the published rules merge two convolutions and start a new one.

What the blocks of a U-Net come to is worked out by hand, from the weights of the untouched network.
"""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trt_layermerge as tlm
from tests.nets import randomise
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import graph_from_json, graph_to_json
from trt_layermerge.core.unit import Block
from trt_layermerge.kinds import refusal
from trt_layermerge.merge.surgery import block_path

EXAMPLE = Path(__file__).parents[2] / "examples" / "ddpm"
UNet = runpy.run_path(str(EXAMPLE / "unet.py"))["UNet"]


def small(seed: int = 0) -> nn.Module:
    """A U-Net of two levels on 8x8 images, in float64, its norms away from one and zero."""
    network = randomise(UNet(1, (8, 16), (1,), 1, 4), seed).double()
    generator = torch.Generator().manual_seed(seed)
    for norm in network.modules():
        if isinstance(norm, nn.GroupNorm):
            for tensor in norm.parameters():
                with torch.no_grad():
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) + 1)
    return network


def inputs(batch: int = 2, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 1, size, size, generator=generator, dtype=torch.float64)
    return images, torch.tensor([3, 900])[:batch]


def pairs(graph: tlm.LayerGraph) -> list[Candidate]:
    found = tlm.enumerate_candidates(graph, rules="paper")
    return [c for c in found if len(c.block) == 2]


def test_the_u_net_of_the_paper_gives_the_published_counts() -> None:
    model = UNet(3, (16, 32, 32, 32), (1,))  # 128, 256, 256, 256 in the paper
    graph = tlm.trace(model, (torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long)))
    candidates = tlm.enumerate_candidates(graph, rules="paper")
    assert len(graph.blocks(rules="paper")) == 73
    assert len(candidates) == 98
    assert {c.kind for c in candidates} == {"compose"}
    assert all(refusal(graph, c) is None for c in candidates)
    merged = [c for c in candidates if len(c.block) == 2]
    assert len({c.block for c in merged}) == 22  # of every residual block, and of each two
    assert sorted(len(c.kept) for c in merged) == [1] * 22 + [2] * 22
    left_out = [graph.units[c.block.start].name for c in candidates if not c.kept]
    assert left_out == ["up.3.conv", "up.7.conv", "up.11.conv"]  # the three upsamplers
    projections = [graph.units[i].name for i in graph.projections]
    assert len(projections) == 13 and all(n.endswith("conv_shortcut") for n in projections)


def test_diffusers_u_net_gives_the_published_counts() -> None:
    diffusers = pytest.importorskip("diffusers", reason="pip install diffusers to run this")
    model = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        dropout=0.1,
        downsample_padding=0,
    )
    graph = tlm.trace(model, (torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long)))
    assert len(graph.blocks(rules="paper")) == 73
    assert len(tlm.enumerate_candidates(graph, rules="paper")) == 98


def by_hand(block: nn.Module, kept: list[str], x: Tensor, time: Tensor) -> Tensor:
    """A residual block without its second norm; zeros at the input only, a new norm at the end."""
    y = F.pad(F.silu(block.norm1(x)), [len(kept)] * 4)  # kernels of three
    if "conv1" in kept:
        y = F.conv2d(y, block.conv1.weight, block.conv1.bias)
    y = y + block.time_emb_proj(F.silu(time))[:, :, None, None]
    if "conv2" in kept:
        y = F.conv2d(y, block.conv2.weight, block.conv2.bias)
    return block.conv_shortcut(x) + F.group_norm(y, block.norm2.num_groups)


@pytest.mark.parametrize("kept", [["conv1", "conv2"], ["conv1"], ["conv2"]])
def test_a_merged_block_is_what_the_rule_says(kept: list[str]) -> None:
    model, (x, t) = small(), inputs()
    graph = tlm.trace(model, (x, t))
    name = "mid.0"
    wanted = {f"{name}.{conv}" for conv in kept}
    (block,) = {c.block for c in pairs(graph) if graph.units[c.block.start].name == f"{name}.conv1"}
    indices = tuple(i for i in range(block.start, block.end) if graph.units[i].name in wanted)
    like = next(c for c in pairs(graph) if c.block == block and len(c.kept) == len(kept))
    candidate = tlm.Candidate(block, "compose", indices, like.convs)
    relaxed = tlm.relax(model, graph, tlm.MergePlan.of(graph, [candidate]))
    merged = tlm.collapse(relaxed)

    expected = copy.deepcopy(model)
    expected.mid[0].forward = lambda a, b: by_hand(model.mid[0], kept, a, b)
    wanted_out = expected(x, t)
    torch.testing.assert_close(relaxed(x, t), wanted_out, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(merged(x, t), wanted_out, rtol=1e-10, atol=1e-10)
    convs = [m for m in merged.get_submodule(block_path(block)).modules() if type(m) is nn.Conv2d]
    assert [c.kernel_size for c in convs] == [(2 * len(kept) + 1,) * 2]


def everything(graph: tlm.LayerGraph) -> tlm.MergePlan:
    """Every residual block merged, every upsampler's convolution left out."""
    lone = [c for c in tlm.enumerate_candidates(graph, rules="paper") if not c.kept]
    both = [c for c in pairs(graph) if len(c.kept) == 2]
    return tlm.MergePlan.of(graph, [*both, *lone])


def test_a_trained_u_net_of_merged_blocks_certifies_and_a_wrong_one_does_not() -> None:
    model, (x, t) = small(), inputs()
    relaxed = tlm.relax(model, tlm.trace(model, (x, t)), everything(tlm.trace(model, (x, t))))
    torch.manual_seed(0)
    optimiser = torch.optim.SGD(relaxed.train().parameters(), 0.1)
    before = {k: v.clone() for k, v in relaxed.state_dict().items() if ".norm." in k}
    for _ in range(3):
        optimiser.zero_grad()
        F.mse_loss(relaxed(x, t), x).backward()
        optimiser.step()
    after = relaxed.eval().state_dict()
    assert before and not any(torch.equal(before[k], after[k]) for k in before)  # they learn
    merged = tlm.collapse(relaxed)
    certificate = tlm.certify(relaxed, merged, (x, t))
    assert certificate.ok and certificate.max_rel_error < 1e-12

    linear = next(m for n, m in merged.named_modules() if n.endswith(".linear"))
    with torch.no_grad():
        linear.weight[0, 0] += 1e-3  # the time is pushed through wrongly
    assert not tlm.certify(relaxed, merged, (x, t)).ok


def test_new_norms_start_at_one_and_zero_and_the_original_is_left_alone() -> None:
    model, given = small(), inputs()
    states = copy.deepcopy(model.state_dict())
    graph = tlm.trace(model, given)
    relaxed = tlm.relax(model, graph, everything(graph))
    norms = [block.norm for block in relaxed.blocks.values() if hasattr(block, "norm")]
    assert len(norms) == len({c.block for c in pairs(graph)})
    for norm in norms:
        assert norm.num_groups == 4
        assert bool((norm.weight == 1).all() and (norm.bias == 0).all())
    assert all(torch.equal(v, states[k]) for k, v in model.state_dict().items())


def test_full_rules_keep_the_wall() -> None:
    graph = tlm.trace(small(), inputs())
    bridged = {Block(b.start, b.start + 2) for b in graph.bridges}
    assert bridged and bridged.isdisjoint(graph.blocks(rules="full"))


def test_bridges_and_projections_come_back_from_files() -> None:
    graph = tlm.trace(small(), inputs())
    assert graph.bridges and graph.projections
    assert graph_from_json(graph_to_json(graph)) == graph


class Walled(nn.Module):
    """Two convolutions with a group normalisation between; ``between`` says how."""

    def __init__(self, between: Callable[[Walled, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.end = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1)
        self.first, self.second = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.norm, self.other = nn.GroupNorm(2, 8), nn.GroupNorm(2, 8)
        self.layer, self.between = nn.Linear(8, 8), between

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.other(self.stem(x)))
        return self.end(torch.tanh(self.other(self.second(self.between(self, self.first(y))))))


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


@pytest.mark.parametrize(
    ("between", "there"),
    [
        (lambda m, y: F.relu(m.norm(y)), True),
        (lambda m, y: m.norm(y), True),
        (lambda m, y: F.relu(m.other(y)), False),  # used again elsewhere
        (lambda m, y: F.relu(m.norm(y)) + y, False),  # the value before is read again
        (lambda m, y: F.relu(m.norm(y + m.layer(mean(y))[..., None, None])), False),  # and here
        (lambda m, y: F.relu(m.norm(y + y.abs())), False),  # no number a channel
        (lambda m, y: F.relu(m.norm(y + torch.ones_like(y[:, :, :1, :1]))), False),
        (lambda m, y: F.relu(m.norm(F.relu(y))), False),  # nonlinear before it
    ],
)
def test_only_what_the_rule_means_is_a_bridge(
    between: Callable[[Walled, Tensor], Tensor], there: bool
) -> None:
    torch.manual_seed(0)
    graph = tlm.trace(Walled(between).eval(), torch.randn(1, 3, 10, 10))
    names = [(graph.units[b.start].name, b.norm) for b in graph.bridges]
    assert (("first", "norm") in names) is there
