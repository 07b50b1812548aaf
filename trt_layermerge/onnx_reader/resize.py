"""ONNX ``Resize`` as ``interpolate`` of torch, where both read the same places of the map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import fx
from torch.nn import functional as F

from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.onnx_reader.converter import Converter, constant, numbers

Places: TypeAlias = "NDArray[np.float64]"
Axis: TypeAlias = tuple[Places, int, float]
"""Positions of the output, 0, 1, 2 …, the size of the input, and output over input."""


def _aligned(axis: Axis) -> Places:
    at, size, _ = axis
    return at * (size - 1) / max(len(at) - 1, 1)


def _halves(axis: Axis) -> Places:
    at, _, scale = axis
    return (at + 0.5) / scale - 0.5


def _symmetric(axis: Axis) -> Places:
    at, size, scale = axis
    return size / 2 * (1 - len(at) / (scale * size)) + _halves(axis)


STYLES: Mapping[str, Callable[[Axis], Places]] = {
    "align_corners": _aligned,
    "asymmetric": lambda axis: axis[0] / axis[2],
    "half_pixel": _halves,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": lambda axis: _halves(axis) if len(axis[0]) > 1 else 0 * axis[0],
}
"""Where each position of the output lies in the input, by ``coordinate_transformation_mode``."""

ROUNDING: Mapping[str, Callable[[Places], Places]] = {
    "ceil": np.ceil,
    "floor": np.floor,
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
}

TORCH: Mapping[str, tuple[tuple[dict[str, Any], Callable[[Axis], Places]], ...]] = {
    "nearest": (
        ({"mode": "nearest"}, lambda axis: np.floor(axis[0] / axis[2])),
        ({"mode": "nearest-exact"}, lambda axis: np.floor((axis[0] + 0.5) / axis[2])),
    ),
    "linear": (
        ({"mode": "bilinear", "align_corners": False}, _halves),
        ({"mode": "bilinear", "align_corners": True}, _aligned),
    ),
}
"""Options of ``interpolate`` by the mode of ONNX, and the places that torch reads with them."""


def resize(converter: Converter, node: Any) -> fx.Node:
    """Converts ``Resize`` of images by whole pixels or linearly.

    Raises:
        UnsupportedModelError: If torch reads other places of the map than ONNX asks for.
    """
    attrs, old = node.attrs, len(node.inputs) == 2  # opset 10 has neither regions nor sizes
    scales, sizes = constant(node, 1 if old else 2), constant(node, 3)
    known, out = node.inputs[0].shape, node.outputs[0].shape
    style = attrs.get("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    rounding = attrs.get("nearest_mode", "floor" if old else "round_prefer_floor")
    mode = attrs.get("mode", "nearest")
    plain = (
        len(known) == 4
        and tuple(known[:2]) == tuple(out[:2])
        and tuple(a % 4 for a in attrs.get("axes", (2, 3))) in ((2, 3), (0, 1, 2, 3))
        and attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch"
        and not attrs.get("antialias", 0)
    )
    if plain and style in STYLES and rounding in ROUNDING:
        given = sizes is None or not len(sizes)
        factors = [float(s) for s in scales[-2:]] if given else np.divide(out[2:], known[2:])
        axes = [
            (np.arange(n, dtype=np.float64), size, scale)
            for n, size, scale in zip(out[2:], known[2:], factors, strict=True)
        ]
        for options, places in TORCH.get(mode, ()):
            if all(_same(mode, rounding, STYLES[style](axis), places(axis), axis) for axis in axes):
                size = {"scale_factor": tuple(factors)} if given else {"size": numbers(out[2:])}
                return converter.call(
                    F.interpolate, converter.value(node.inputs[0]), **size, **options
                )
    raise UnsupportedModelError(
        f"the ONNX node {node.name} resizes in a way that torch cannot (mode {mode}, coordinates "
        f"{style}, rounding {rounding}); export it with mode nearest and coordinates asymmetric, "
        "or with mode linear and coordinates half_pixel"
    )


def _same(mode: str, rounding: str, wanted: Places, read: Places, axis: Axis) -> bool:
    """Whether two lists of places mean the same pixels of one axis; those outside are its ends."""
    wanted = ROUNDING[rounding](wanted) if mode == "nearest" else wanted
    last = axis[1] - 1
    return bool(np.allclose(np.clip(wanted, 0, last), np.clip(read, 0, last), rtol=0, atol=1e-5))
