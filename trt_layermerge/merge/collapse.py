"""Relaxed network → plain network of merged convolutions, equal to it in eval mode."""

from __future__ import annotations

import copy

import torch
from torch import nn

from trt_layermerge.blocks import RelaxedBlock
from trt_layermerge.core.candidate import original_candidate
from trt_layermerge.kinds import refusal
from trt_layermerge.merge.relax import RelaxedNet, build_block
from trt_layermerge.merge.surgery import (
    drop_transparent,
    fold_batch_norms,
    replace_module,
    splice,
    tidy,
)
from trt_layermerge.tracing import TracedNetwork


@torch.no_grad()
def collapse(relaxed: RelaxedNet) -> nn.Module:
    """Returns the merged network, a plain module in eval mode, for the same inputs and outputs.

    Every block is one convolution of its candidate's geometry (a chain of new ones stays a chain),
    batch normalisations are folded everywhere, and what does nothing in eval mode is gone. Equal
    to the relaxed network in eval mode up to rounding: computed in float64, cast once; ``certify``
    measures it.

    Args:
        relaxed: What ``relax`` returned, trained or not; left untouched.

    Raises:
        UnsupportedModelError: If a batch normalisation keeps no running statistics.
    """
    network = copy.deepcopy(relaxed.net).eval()
    traced = TracedNetwork(network, relaxed.graph)
    for candidate in relaxed.plan.candidates:
        if candidate.original and _fuses(traced, candidate.block.start):
            splice(traced, build_block(traced, candidate))
    for name, block in list(network.named_modules()):
        if isinstance(block, RelaxedBlock):
            replace_module(network, name, block.collapsed())
    network.graph.eliminate_dead_code()
    fold_batch_norms(network)
    drop_transparent(network)
    tidy(network)
    return network.eval()  # new modules start in training mode


def _fuses(traced: TracedNetwork, index: int) -> bool:
    """Whether an untouched unit has a residual of its own that becomes part of its convolution."""
    own = traced.graph.residuals_inside(index, index + 1)
    return bool(own) and refusal(traced.graph, original_candidate(traced.graph, index)) is None
