"""Blocks merged before the training instead of after it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from trt_layermerge.errors import UsageError
from trt_layermerge.merge.algebra import expand_groups
from trt_layermerge.merge.block import ComposedBlock, FittedBlock
from trt_layermerge.merge.collapse import composed_kernel
from trt_layermerge.merge.leastsq import Solution
from trt_layermerge.merge.relax import RelaxedNet
from trt_layermerge.merge.repair import install
from trt_layermerge.merge.surgery import block_path, replace_module


@torch.no_grad()
def collapse_early(relaxed: RelaxedNet, images: Iterable[Tensor] | None) -> None:
    """Makes every block of composed units the one convolution that it merges into, in place.

    A batch normalisation follows it that changes nothing at the start: its statistics are those of
    the convolution's output on the images, its scale and shift undo them, so the network computes
    what it computed before (in eval mode up to rounding). Fitted blocks are so already.

    Args:
        relaxed: What to change.
        images: Batches ``(N, C, H, W)``; None where the values will be filled in from a file.

    Raises:
        UsageError: If there are no images.
    """
    changed: list[tuple[FittedBlock, Solution]] = []
    for block in relaxed.blocks.values():
        kernel = composed_kernel(block) if isinstance(block, ComposedBlock) else None
        if kernel is None:
            continue
        spec, like = block.candidate.convs[0], next(block.parameters())
        merged = FittedBlock(block.candidate, like).train(block.training)
        zeros = torch.zeros(spec.out_channels, dtype=torch.float64, device=like.device)
        weight = expand_groups(kernel, spec.groups).weight
        solution = Solution(weight, kernel.bias, zeros, zeros + 1, zeros)
        install(merged.bodies()[0], solution)
        replace_module(relaxed.net, block_path(block.candidate.block), merged)
        changed.append((merged, solution))
    if images is not None and changed:
        _set_statistics(relaxed, changed, images)


def _set_statistics(
    relaxed: RelaxedNet, changed: list[tuple[FittedBlock, Solution]], images: Iterable[Tensor]
) -> None:
    """Gives the new normalisations the statistics of what reaches them."""
    sums = {block.bodies()[0].conv: _Sums() for block, _ in changed}
    handles = [conv.register_forward_hook(found.add) for conv, found in sums.items()]
    training = relaxed.training
    relaxed.eval()
    for batch in images:
        relaxed(batch)
    relaxed.train(training)
    for handle in handles:
        handle.remove()
    for block, solution in changed:
        body = block.bodies()[0]
        mean, variance = sums[body.conv].moments()
        install(body, replace(solution, mean=mean, variance=variance))


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
