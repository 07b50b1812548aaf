"""Batch normalisations of a network, and their running statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trt_layermerge.core.inputs import parts_of


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Returns every batch normalisation that keeps running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@contextmanager
def in_training(
    norms: Sequence[_BatchNorm], first: Callable[[_BatchNorm], None] = lambda _: None
) -> Iterator[None]:
    """Has batch normalisations use each batch's statistics, but for batches of one value a channel.

    Those, of one image where the map is one pixel, have no variance: the running statistics are
    used instead, and stay.

    Args:
        norms: The normalisations.
        first: Called with each before the first batch whose statistics it uses.
    """
    begun: set[nn.Module] = set()

    def look(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        several = inputs[0].numel() > inputs[0].shape[1]
        if several and norm not in begun and isinstance(norm, _BatchNorm):
            begun.add(norm)
            first(norm)
        norm.train(several)

    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    try:
        yield
    finally:
        for norm, hook in zip(norms, hooks, strict=True):
            hook.remove()
            norm.train()


def reestimate(model: nn.Module, images: Iterable[Any]) -> None:
    """Replaces the running statistics of every BN by their plain mean over batches of images.

    Where no batch has more than one value a channel, they stay.
    """
    norms = batch_norms(model)
    kept = [norm.momentum for norm in norms]

    def begin(norm: _BatchNorm) -> None:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean

    model.eval()
    with torch.no_grad(), in_training(norms, begin):
        for batch in images:
            model(*parts_of(batch))
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
        norm.eval()
