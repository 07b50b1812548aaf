"""Whether the images that repairs are fitted and scored on are such as the network was trained on.

Batch normalisation remembers the mean and the spread of every channel over the training. Images of
the same kind, preprocessed in the same way, have nearly the same means; how far they are off, in
spreads, tells others apart, and needs no labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import torch
from torch import Tensor, nn

from trt_layermerge.core.inputs import parts_of
from trt_layermerge.data import LabelledData
from trt_layermerge.models.weights import untrained_note

FEW, LOOKED_AT, FOREIGN = 64, 64, 0.35
"""Fewer images than these are few; so many are looked at; this many spreads off are foreign.

Chosen between photographs and what is none, on two networks with real weights; their figures are
not recorded yet (``benchmarks/bm_foreign.py``). Images normalised in a neighbouring way cannot be
told apart so.
"""


def image_notes(model: nn.Module, images: LabelledData) -> Iterator[str]:
    """Yields what a user must hear of the images that the network is repaired and scored by.

    Args:
        model: The original network, in eval mode.
        images: The training images.
    """
    if len(images) < FEW:
        yield (
            f"there are {len(images)} training images only: repairs and scores rest on them, so "
            "expect plans that keep less of the network than they promise; give some hundred "
            "(data.train)"
        )
    off = distance(model, images)
    if off is not None and off > FOREIGN and untrained_note(model) is None:
        yield (
            f"the training images look foreign to this network: its layers see means {off:.1f} "
            "spreads away from those of its training; check that these are images of its kind, and "
            "data.preprocess"
        )


def distance(model: nn.Module, images: LabelledData) -> float | None:
    """Returns how far means are from those remembered, in spreads: the median over the layers.

    None without batch normalisation.

    Args:
        model: The network, in eval mode.
        images: Some of them, from all over the set, are shown to it.
    """
    places = torch.linspace(0, len(images) - 1, min(LOOKED_AT, len(images))).long()
    found = distances(model, parts_of(images.batch(places)[0]))
    return median(off for off, _ in found) if found else None


def distances(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[tuple[float, float]]:
    """Returns how far means are from those remembered, and spreads, of every batch normalisation.

    Of a layer both are root mean squares over the channels: of the means in remembered spreads, of
    the spreads in the logarithm of their ratio.

    Args:
        model: The network, in eval mode.
        inputs: What is shown to it, ``(N, C, H, W)`` each.
    """
    found: list[tuple[float, float]] = []

    def look(layer: nn.Module, given: tuple[Tensor, ...], _: object) -> None:
        mean, variance = layer.running_mean, layer.running_var
        if isinstance(mean, Tensor) and isinstance(variance, Tensor):
            rest = [d for d in range(given[0].ndim) if d != 1]
            seen, around = given[0].mean(rest), given[0].var(rest)
            off = (seen - mean) / (variance + 1e-5).sqrt()
            ratio = ((around + 1e-5) / (variance + 1e-5)).log() / 2
            far, wide = (float(v.square().mean().sqrt()) for v in (off, ratio))
            found.append((far, wide))

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    hooks = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, kinds)]
    try:
        if hooks:
            with torch.no_grad():
                model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found
