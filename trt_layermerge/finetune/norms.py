"""Batch normalisations of a network, and their running statistics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trt_layermerge.core.inputs import parts_of


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Returns every batch normalisation that keeps running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def reestimate(model: nn.Module, images: Iterable[Any]) -> None:
    """Replaces the running statistics of every BN by their plain mean over batches of images."""
    norms = batch_norms(model)
    kept = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    with torch.no_grad():
        for batch in images:
            model(*parts_of(batch))
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
        norm.eval()
