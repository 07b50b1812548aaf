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

FEW, LOOKED_AT, FOREIGN = 64, 64, 0.5
"""Fewer images than these are few; so many are looked at; this many spreads off are foreign."""


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

    Of a layer it is the root mean square over the channels. None without batch normalisation.

    Args:
        model: The network, in eval mode.
        images: Some of them, from all over the set, are shown to it.
    """
    found: list[float] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        mean, spread = layer.running_mean, layer.running_var
        if isinstance(mean, Tensor) and isinstance(spread, Tensor):
            seen = inputs[0].mean([d for d in range(inputs[0].ndim) if d != 1])
            off = (seen - mean) / (spread + 1e-5).sqrt()
            found.append(float(off.square().mean().sqrt()))

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    hooks = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, kinds)]
    if not hooks:
        return None
    places = torch.linspace(0, len(images) - 1, min(LOOKED_AT, len(images))).long()
    try:
        with torch.no_grad():
            model(*parts_of(images.batch(places)[0]))
    finally:
        for hook in hooks:
            hook.remove()
    return median(found) if found else None
