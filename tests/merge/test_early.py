"""Blocks merged before the training: the same function, one convolution each."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests import nets
from tests.plans import random_plan
from trt_layermerge.blocks import ComposedBlock, ConvChain
from trt_layermerge.errors import UsageError
from trt_layermerge.merge import (
    RelaxedNet,
    certify,
    collapse,
    collapse_early,
    reestimate_bn,
    relax,
    repair,
)
from trt_layermerge.tracing import trace_network

IMAGES = nets.example(size=12, batch=64)
NETS = [nets.basic_resnet, nets.mobile, nets.odd_chain, nets.repvgg_like]


def relaxed_net(model: nn.Module, seed: int, kinds: tuple[str, ...]) -> RelaxedNet:
    graph = trace_network(model, IMAGES[:2].to(next(model.parameters()))).graph
    return relax(model, graph, random_plan(graph, seed, kinds, longest=4))


def composed_blocks(relaxed: RelaxedNet) -> list[ComposedBlock]:
    return [b for b in relaxed.blocks.values() if isinstance(b, ComposedBlock)]


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", NETS)
def test_the_function_stays_and_each_block_is_one_convolution(make, seed: int) -> None:
    relaxed = relaxed_net(make().double(), seed, ("compose", "identity"))
    expected, x = relaxed(IMAGES.double()), IMAGES.double()
    computing = sum(bool(b.candidate.convs) for b in relaxed.blocks.values())
    collapse_early(relaxed, x.split(16))
    scale = float(expected.abs().max())
    assert float((relaxed(x) - expected).abs().max()) <= 1e-10 * scale
    fitted = [b for b in relaxed.blocks.values() if isinstance(b, ConvChain)]
    assert len(fitted) == computing > 0
    assert all(len(b.bodies()) == 1 and b.last and b.last.norm is not None for b in fitted)
    assert not any(b.candidate.convs for b in composed_blocks(relaxed))
    assert certify(relaxed, collapse(relaxed), x).ok


@torch.no_grad()
def test_training_mode_starts_as_the_same_function() -> None:
    """The statistics are those of the images: a step of training sees no jump."""
    relaxed = relaxed_net(nets.basic_resnet().double(), 0, ("compose",))
    collapse_early(relaxed, IMAGES.double().split(16))
    before = [v.clone() for v in relaxed.buffers()]
    blocks = nn.ModuleList(b for b in relaxed.blocks.values() if isinstance(b, ConvChain))
    network = copy.deepcopy(relaxed)
    network.eval()
    for block in network.blocks.values():
        block.train()
    x = IMAGES.double()
    difference = float((network(x) - relaxed(x)).abs().max()) / float(relaxed(x).abs().max())
    assert len(blocks) > 0 and difference <= 1e-9
    assert all(torch.equal(a, b) for a, b in zip(before, relaxed.buffers(), strict=True))


@torch.no_grad()
def test_repaired_blocks_start_with_the_statistics_of_what_reaches_them() -> None:
    """The identity-start BN of repair: estimating it anew changes little."""
    model = nets.basic_resnet().double()
    relaxed = relaxed_net(model, 1, ("fit",))
    repair(relaxed, model, IMAGES.double().split(16))
    anew = copy.deepcopy(relaxed)
    found = 0
    for name, block in anew.blocks.items():
        inputs: list[torch.Tensor] = []
        handle = relaxed.blocks[name].register_forward_hook(
            lambda _m, args, _o, inputs=inputs: inputs.append(args[0])
        )
        relaxed(IMAGES.double())
        handle.remove()
        reestimate_bn(block, inputs)
        mine, theirs = relaxed.blocks[name].last.norm, block.last.norm
        assert float((mine.running_mean - theirs.running_mean).abs().max()) <= 0.15
        assert float((mine.running_var / theirs.running_var - 1).abs().max()) <= 0.15
        found += 1
    assert found > 0


def test_without_images_the_shape_is_there_to_be_filled() -> None:
    model = nets.basic_resnet()
    full, empty = (relaxed_net(model, 0, ("compose",)) for _ in range(2))
    collapse_early(full, IMAGES.split(16))
    collapse_early(empty, None)
    empty.load_state_dict(full.state_dict())
    assert torch.equal(empty(IMAGES), full(IMAGES))
    with pytest.raises(UsageError, match="needs images"):
        collapse_early(relaxed_net(model, 0, ("compose",)), [])
