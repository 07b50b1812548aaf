"""How a network was trained to see images, as far as its library or the network itself says."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trt_layermerge.models import ONNX, PRETRAINED

if TYPE_CHECKING:
    from torch import nn

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


def pretrained_data_config(
    name: str, weights: str | None, *, ask_factory: bool = True
) -> DataConfig | None:
    """Returns how a network was trained to see images, or None where nothing says it.

    It stands in timm's ``pretrained_cfg`` for ``timm:NAME``, and for ``torchvision:NAME`` with
    pretrained weights in the transforms of these. A library that is not installed says nothing. The
    network of a factory is made, to see what it knows (``data_config_of``).

    Args:
        name: As ``load_network`` takes it.
        weights: As ``load_network`` takes it.
        ask_factory: Whether a factory's network is made.

    Raises:
        LayerMergeError: As ``load_network``, of a factory.
    """
    library, colon, own = name.partition(":")
    if library == "timm":
        return _timm(own)
    if library == "torchvision":
        return _torchvision(own) if weights == PRETRAINED else None
    if not ask_factory or not colon or name.endswith(ONNX):
        return None
    from trt_layermerge.models.networks import load_network

    return data_config_of(load_network(name))


def data_config_of(model: nn.Module) -> DataConfig | None:
    """Returns how a network was trained to see images, or None if it does not say.

    What is asked are timm's ``pretrained_cfg``, and torchvision's weights or their transforms where
    somebody made them an attribute (``weights``, ``transforms``), of the network and then of its
    parts: a wrapper sees images as what it wraps.
    """
    for part in model.modules():
        config = getattr(part, "pretrained_cfg", None)
        if config:
            return _of_timm(config)
        for attached in (getattr(part, "weights", None), getattr(part, "transforms", None)):
            transforms = getattr(attached, "transforms", attached)
            made = transforms() if transforms is not attached and callable(transforms) else attached
            if hasattr(made, "crop_size") and hasattr(made, "mean"):
                return _of_torchvision(made)
    return None


def _timm(name: str) -> DataConfig | None:
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        return None
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return None if config is None else _of_timm(config.to_dict())


def _of_timm(config: Mapping[str, Any]) -> DataConfig | None:
    found = importlib.import_module("timm.data").resolve_data_config({}, pretrained_cfg=config)
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
    return _of_torchvision(found) if hasattr(found, "crop_size") else None  # no classifier


def _of_torchvision(found: Any) -> DataConfig:
    crop, whole = found.crop_size[0], found.resize_size[0]
    method = found.interpolation.value
    return _config((1, 3, crop, crop), found.mean, found.std, crop / whole, method)


def _config(
    shape: tuple[int, ...], mean: Any, std: Any, crop_pct: float, method: str
) -> DataConfig:
    known = method if method in METHODS else None
    return DataConfig(shape, tuple(mean), tuple(std), crop_pct, known)
