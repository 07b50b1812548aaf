"""Blocks merged before the training instead of after it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trt_layermerge.blocks import ConvChain, Kernel
from trt_layermerge.errors import UsageError
from trt_layermerge.merge.relax import RelaxedNet
from trt_layermerge.merge.surgery import block_path, replace_module


@torch.no_grad()
def collapse_early(relaxed: RelaxedNet, images: Iterable[Tensor] | None) -> None:
    """Makes every block of several parts the one convolution that it merges into, in place.

    A batch normalisation follows it that changes nothing at the start: its statistics are those of
    the convolution's output on the images, its scale and shift undo them, so the network computes
    what it computed before (in eval mode up to rounding). New convolutions stay as they are.

    Args:
        relaxed: What to change.
        images: Batches ``(N, C, H, W)``; None where the values will be filled in from a file.

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


def _set_statistics(
    relaxed: RelaxedNet, changed: list[tuple[ConvChain, Kernel]], images: Iterable[Tensor]
) -> None:
    """Gives the new normalisations the statistics of what reaches them."""
    sums = {block.last.conv: _Sums() for block, _ in changed}
    handles = [conv.register_forward_hook(found.add) for conv, found in sums.items()]
    training = relaxed.training
    relaxed.eval()
    for batch in images:
        relaxed(batch)
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
