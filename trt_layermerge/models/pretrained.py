"""How the network of a library was trained to see images."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from trt_layermerge.models import PRETRAINED

METHODS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class DataConfig:
    """How a network was trained to see images.

    Attributes:
        shape: Of its input, ``(1, C, H, W)``.
        mean: Subtracted from pixels in [0, 1], per channel.
        std: Divides them then, per channel.
        crop_pct: Share of a resized image that is kept, in each direction.
        interpolation: How images are resized; None where it is a way that is not known here.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str | None


def pretrained_data_config(name: str, weights: str | None) -> DataConfig | None:
    """Returns how a network of a library was trained to see images, or None if it does not say.

    It stands in timm's ``pretrained_cfg`` for ``timm:NAME``, and for ``torchvision:NAME`` with
    pretrained weights in the transforms of these. A library that is not installed says nothing.

    Args:
        name: As ``load_network`` takes it.
        weights: As ``load_network`` takes it.
    """
    library, _, own = name.partition(":")
    if library == "timm":
        return _timm(own)
    if library == "torchvision" and weights == PRETRAINED:
        return _torchvision(own)
    return None


def _timm(name: str) -> DataConfig | None:
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        return None
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None:
        return None
    found = timm.data.resolve_data_config({}, pretrained_cfg=config.to_dict())
    if found.get("crop_mode", "center") != "center":
        return None  # squashed or padded images, which are not made here
    shape = (1, *found["input_size"])
    return _config(shape, found["mean"], found["std"], found["crop_pct"], found["interpolation"])


def _torchvision(name: str) -> DataConfig | None:
    try:
        models = importlib.import_module("torchvision.models")
        weights = models.get_model_weights(name).DEFAULT
    except (ImportError, ValueError, AttributeError):
        return None
    found = weights.transforms()
    if not hasattr(found, "crop_size"):
        return None  # not a classifier
    crop, whole = found.crop_size[0], found.resize_size[0]
    method = found.interpolation.value
    return _config((1, 3, crop, crop), found.mean, found.std, crop / whole, method)


def _config(
    shape: tuple[int, ...], mean: Any, std: Any, crop_pct: float, method: str
) -> DataConfig:
    known = method if method in METHODS else None
    return DataConfig(shape, tuple(mean), tuple(std), crop_pct, known)
