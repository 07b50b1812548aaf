"""ONNX ``Resize`` as ``interpolate`` of torch, where both can read the same places of the map."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import fx
from torch.nn import functional as F

from trt_layermerge.onnx_reader.converter import Converter, constant, sizes

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
    """Converts ``Resize`` and ``Upsample`` of images by whole pixels or linearly.

    Raises:
        ValueError: If torch reads other places of the map than ONNX asks for.
    """
    # Before opset 11 there are neither regions nor sizes, and before 9 the scales are no input.
    attrs, old = node.attrs, node.op == "Upsample" or len(node.inputs) == 2
    scales, wanted = constant(node, 1 if old else 2, "scales"), constant(node, 3)
    known, out = sizes(node.inputs[0]), sizes(node.outputs[0])
    style = attrs.get("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    rounding = attrs.get("nearest_mode", "floor" if old else "round_prefer_floor")
    mode = attrs.get("mode", "nearest")
    plain = (
        len(known) == 4
        and known[:2] == out[:2]
        and tuple(a % 4 for a in attrs.get("axes", (2, 3))) in ((2, 3), (0, 1, 2, 3))
        and attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch"
        and not attrs.get("antialias", 0)
    )
    if plain and style in STYLES and rounding in ROUNDING:
        given = wanted is None or not len(wanted)
        factors = [float(s) for s in scales[-2:]] if given else np.divide(out[2:], known[2:])
        axes = [
            (np.arange(n, dtype=np.float64), size, scale)
            for n, size, scale in zip(out[2:], known[2:], factors, strict=True)
        ]
        for options, places in TORCH.get(mode, ()):
            if all(_same(mode, rounding, STYLES[style](axis), places(axis), axis) for axis in axes):
                size = {"scale_factor": tuple(factors)} if given else {"size": out[2:]}
                return converter.call(
                    F.interpolate, converter.value(node.inputs[0]), **size, **options
                )
        if mode == "linear" and all(
            _same(mode, rounding, STYLES[style](axis), _from_first(axis), axis) for axis in axes
        ):
            return _one_longer(converter, node, out[2:])
    raise ValueError(
        f"it resizes in a way that torch cannot (mode {mode}, coordinates {style}, rounding "
        f"{rounding}); export it with mode nearest and coordinates asymmetric, or with mode linear "
        "and coordinates half_pixel"
    )


def _from_first(axis: Axis) -> Places:
    """Returns places that count from the first pixel, in steps of input over output."""
    at, size, _ = axis
    return at * size / len(at)


def _one_longer(converter: Converter, node: Any, size: tuple[int, ...]) -> fx.Node:
    """Converts to places that count from the first pixel, which torch does not know.

    With one pixel more at the ends of input and output, they are those of aligned corners.
    """
    longer = converter.call(F.pad, converter.value(node.inputs[0]), (0, 1, 0, 1), "replicate")
    rows, columns = size
    grown = converter.call(
        F.interpolate, longer, size=(rows + 1, columns + 1), mode="bilinear", align_corners=True
    )
    cuts = (slice(None), slice(None), slice(rows), slice(columns))
    return converter.call(operator.getitem, grown, cuts)


def _same(mode: str, rounding: str, wanted: Places, read: Places, axis: Axis) -> bool:
    """Whether two lists of places mean the same pixels of one axis; those outside are its ends."""
    wanted = ROUNDING[rounding](wanted) if mode == "nearest" else wanted
    last = axis[1] - 1
    return bool(np.allclose(np.clip(wanted, 0, last), np.clip(read, 0, last), rtol=0, atol=1e-5))
