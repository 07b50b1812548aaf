"""ONNX operators that move, cut or join values without computing anything."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.nn import functional as F

from trt_layermerge.onnx_reader.converter import Converter, constant, numbers, sizes


def reshape(converter: Converter, node: Any) -> fx.Node:
    """Converts a reshape whose first size is a multiple of the batch; it follows the batch."""
    x, known, shape = converter.value(node.inputs[0]), sizes(node.inputs[0]), sizes(node.outputs[0])
    if len(shape) == 2 and shape[0] == known[0]:
        return converter.call(torch.flatten, x, 1)
    if shape and shape[0] % converter.batch == 0:
        return converter.call(torch.reshape, x, (-1, *shape[1:]))
    return converter.call(torch.reshape, x, shape)


def flatten(converter: Converter, node: Any) -> fx.Node:
    """Converts to a matrix: the sizes before the axis, and those from it on."""
    x, known = converter.value(node.inputs[0]), sizes(node.inputs[0])
    axis = int(node.attrs.get("axis", 1))
    axis += len(known) if axis < 0 else 0
    if axis == 1:
        return converter.call(torch.flatten, x, 1)
    columns = math.prod(known[axis:]) if axis else -1
    return converter.call(torch.reshape, x, (-1 if axis else 1, columns))


def expand(converter: Converter, node: Any) -> fx.Node:
    """Converts ``Expand``; an axis that keeps its size keeps any."""
    known, wanted = sizes(node.inputs[0]), sizes(node.outputs[0])
    before = (0,) * (len(wanted) - len(known)) + known
    size = tuple(-1 if old == new else new for old, new in zip(before, wanted, strict=True))
    return converter.graph.call_method("expand", (converter.value(node.inputs[0]), size))


def tile(converter: Converter, node: Any) -> fx.Node:
    """Converts ``Tile``."""
    return converter.call(torch.tile, converter.value(node.inputs[0]), numbers(constant(node, 1)))


def gather(converter: Converter, node: Any) -> fx.Node:
    """Converts ``Gather`` at places that are known, along one axis."""
    x, known = converter.value(node.inputs[0]), sizes(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % len(known)
    places = np.asarray(constant(node, 1)) % known[axis]
    if places.ndim == 0:
        return converter.call(torch.select, x, axis, int(places))
    if places.ndim != 1:
        raise ValueError(f"it picks places of shape {places.shape}, and only lists are read")
    return converter.call(torch.index_select, x, axis, _buffer(converter, node, places))


def depth_to_space(converter: Converter, node: Any) -> fx.Node:
    """Converts ``DepthToSpace``; torch knows the mode CRD, and DCR is that of other channels."""
    block = int(node.attrs["blocksize"])
    x, channels = converter.value(node.inputs[0]), sizes(node.inputs[0])[1]
    if node.attrs.get("mode", "DCR") == "DCR":
        order = np.arange(channels).reshape(block * block, -1).T.flatten()
        x = converter.call(torch.index_select, x, 1, _buffer(converter, node, order))
    return converter.call(F.pixel_shuffle, x, block)


def space_to_depth(converter: Converter, node: Any) -> fx.Node:
    """Converts ``SpaceToDepth``, whose channels stand in another order than torch's."""
    block, channels = int(node.attrs["blocksize"]), sizes(node.inputs[0])[1]
    x = converter.call(F.pixel_unshuffle, converter.value(node.inputs[0]), block)
    order = np.arange(channels * block * block).reshape(channels, -1).T.flatten()
    return converter.call(torch.index_select, x, 1, _buffer(converter, node, order))


def _buffer(converter: Converter, node: Any, places: Any) -> fx.Node:
    """Returns the node of a constant list of places, named after an ONNX node."""
    return converter.buffer(f"{node.name or node.op}_places", torch.tensor(places.astype(np.int64)))


def axes(converter: Converter, node: Any) -> fx.Node:
    """Converts ``Squeeze`` and ``Unsqueeze``."""
    value, known = converter.value(node.inputs[0]), sizes(node.inputs[0])
    rank = max(len(known), len(sizes(node.outputs[0])))
    given = constant(node, 1, "axes")
    if given is None:
        given = [i for i, size in enumerate(known) if size == 1 and i]
    dims = sorted(a % rank for a in numbers(given))
    if node.op == "Squeeze":
        return converter.call(torch.squeeze, value, tuple(dims))
    for dim in dims:
        value = converter.call(torch.unsqueeze, value, dim)
    return value


def pad(converter: Converter, node: Any) -> fx.Node:
    """Converts ``Pad``. Raises ``ValueError``."""
    pads = numbers(constant(node, 1, "pads"))
    value = float(constant(node, 2, "value", 0.0))
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    mode, half = node.attrs.get("mode", "constant"), len(pads) // 2
    sides = [p for i in reversed(range(half)) for p in (pads[i], pads[i + half])]
    if mode not in modes or len(node.inputs) > 3:
        raise ValueError(f"it pads with mode {mode} and {len(node.inputs)} inputs")
    if mode != "constant":
        return converter.call(F.pad, converter.value(node.inputs[0]), sides[:4], modes[mode])
    return converter.call(F.pad, converter.value(node.inputs[0]), sides, "constant", value)


def cut_out(converter: Converter, node: Any) -> fx.Node:
    """Converts ``Slice``."""
    starts, ends = (numbers(constant(node, i, n)) for i, n in ((1, "starts"), (2, "ends")))
    along = numbers(constant(node, 3, "axes", range(len(starts))))
    steps = numbers(constant(node, 4, None, [1] * len(starts)))
    rank = len(sizes(node.inputs[0]))
    cuts = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, along, steps, strict=True):
        cuts[axis % rank] = slice(start, min(end, 2**31), step)
    return converter.call(operator.getitem, converter.value(node.inputs[0]), tuple(cuts))


def split(converter: Converter, node: Any) -> fx.Node:
    """Converts ``Split``; its outputs stand in the converter by name."""
    axis = int(node.attrs.get("axis", 0))
    lengths = [sizes(output)[axis] for output in node.outputs]
    parts = converter.call(torch.split, converter.value(node.inputs[0]), lengths, axis)
    for i, output in enumerate(node.outputs):
        converter.values[output.name] = converter.call(operator.getitem, parts, i)
    return converter.values[node.outputs[0].name]


def concat(converter: Converter, node: Any) -> fx.Node:
    """Converts ``Concat``."""
    values = [converter.value(x) for x in node.inputs]
    return converter.call(torch.cat, values, int(node.attrs["axis"]))


def transpose(converter: Converter, node: Any) -> fx.Node:
    """Converts ``Transpose``."""
    order = node.attrs.get("perm") or reversed(range(len(sizes(node.inputs[0]))))
    return converter.call(torch.permute, converter.value(node.inputs[0]), numbers(order))
