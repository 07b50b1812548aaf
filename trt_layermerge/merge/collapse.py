"""Relaxed network → plain network of merged convolutions, equal to it in eval mode.

Or, before the training, each block a convolution of its own that is trained as such.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trt_layermerge.blocks import ConvChain, Kernel, RelaxedBlock
from trt_layermerge.core.candidate import original_candidate
from trt_layermerge.core.inputs import parts_of
from trt_layermerge.core.streams import slim_graph
from trt_layermerge.errors import UsageError
from trt_layermerge.kinds import refusal
from trt_layermerge.merge.relax import RelaxedNet, build_block
from trt_layermerge.merge.surgery import (
    block_path,
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
    traced = TracedNetwork(network, slim_graph(relaxed.graph, relaxed.plan.widths))
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


@torch.no_grad()
def collapse_early(relaxed: RelaxedNet, images: Iterable[Any] | None) -> None:
    """Makes every block of several parts the one convolution that it merges into, in place.

    A batch normalisation follows it that changes nothing at the start: its statistics are those of
    the convolution's output on the images, its scale and shift undo them, so the network computes
    what it computed before (in eval mode up to rounding). New convolutions stay as they are.

    Args:
        relaxed: What to change.
        images: Batches ``(N, C, H, W)``, or of several inputs (``core.inputs``); None where the
            values will be filled in from a file.

    Raises:
        UsageError: If there are no images.
    """
    changed: list[tuple[ConvChain, Kernel]] = []
    for block in relaxed.blocks.values():
        kernel = block.kernel()
        if kernel is None:
            continue
        merged = ConvChain(block.candidate, next(block.parameters())).train(block.training)
        zeros = torch.zeros_like(kernel.bias)
        merged.last.install(kernel.weight, kernel.bias, zeros, zeros + 1)
        replace_module(relaxed.net, block_path(block.candidate.block), merged)
        changed.append((merged, kernel))
    if images is not None and changed:
        _set_statistics(relaxed, changed, images)


def _fuses(traced: TracedNetwork, index: int) -> bool:
    """Whether an untouched unit has a residual of its own that becomes part of its convolution."""
    own = traced.graph.residuals_inside(index, index + 1)
    return bool(own) and refusal(traced.graph, original_candidate(traced.graph, index)) is None


def _set_statistics(
    relaxed: RelaxedNet, changed: list[tuple[ConvChain, Kernel]], images: Iterable[Any]
) -> None:
    """Gives the new normalisations the statistics of what reaches them."""
    sums = {block.last.conv: _Sums() for block, _ in changed}
    handles = [conv.register_forward_hook(found.add) for conv, found in sums.items()]
    training = relaxed.training
    relaxed.eval()
    for batch in images:
        relaxed(*parts_of(batch))
    relaxed.train(training)
    for handle in handles:
        handle.remove()
    for block, kernel in changed:
        block.last.install(kernel.weight, kernel.bias, *sums[block.last.conv].moments())


class _Sums:
    """Sums of a convolution's outputs and of their squares, by channel."""

    def __init__(self) -> None:
        self.count, self.first, self.second = 0, torch.zeros(()), torch.zeros(())

    def add(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Adds ``(N, C, H, W)``."""
        values = output.double()
        self.count += output.numel() // output.shape[1]
        self.first = self.first.to(values) + values.sum((0, 2, 3))
        self.second = self.second.to(values) + values.square().sum((0, 2, 3))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Returns mean and variance by channel."""
        if self.count == 0:
            raise UsageError("merging before the training needs images; give at least one batch")
        mean = self.first / self.count
        return mean, (self.second / self.count - mean.square()).clamp_min(0)
