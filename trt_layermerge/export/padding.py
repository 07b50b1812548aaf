"""Padding that stands on its own becomes part of the convolution or pooling that reads it.

TF's ``SAME`` puts an odd pixel at the bottom and at the right, which torch's layers cannot express:
they are exported as a constant ``Pad`` and a layer without padding. ONNX's layers take other pads
at the end than at the start. One layer is what latency tables time, what int8 needs (nothing stands
between a Q/DQ pair and its convolution), and what half precision holds: before a maximum, the
padding is minus infinity.

1. ``Conv`` behind zeros: the pads add up.
2. ``MaxPool`` behind minus infinity: likewise.
3. ``AveragePool`` behind zeros, which count: its own pads count then (``count_include_pad``).

ONNX Runtime wants the pads of 2 and 3 smaller than the window; others, and pooling that rounds up
(``ceil_mode``: which windows it drops depends on the pads), keep their ``Pad``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

_FILLED = {"Conv": 0.0, "AveragePool": 0.0, "MaxPool": -math.inf}
"""What the own padding of a layer is worth."""


def absorb_pads(graph: gs.Graph) -> None:
    """Makes every constant ``Pad`` part of the layers that can do it themselves, in place.

    The network computes the same, in the same order. A ``Pad`` that nothing reads any more is left
    to ``cleanup``.
    """
    for node in graph.nodes:
        pad = node.inputs[0].inputs[0] if node.op in _FILLED and node.inputs[0].inputs else None
        if pad is None or pad.op != "Pad":
            continue
        found = _attributes(node, pad)
        if found is not None:
            node.attrs.update(found)
            node.inputs[0] = pad.inputs[0]


def _attributes(node: gs.Node, pad: gs.Node) -> dict[str, Any] | None:
    """Returns what a layer must be told to pad by itself as well, or None where it cannot."""
    window = node.attrs.get("kernel_shape")
    if not window or node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    more = _margins(pad, len(window), _FILLED[node.op])
    if more is None:
        return None
    own = np.asarray(node.attrs.get("pads", np.zeros_like(more)), np.int64)
    pads = own + more
    if node.op == "Conv":
        return {"pads": pads.tolist()}
    if node.attrs.get("ceil_mode", 0) or (pads >= np.tile(window, 2)).any():
        return None
    if node.op == "MaxPool":
        return {"pads": pads.tolist()}
    counts = node.attrs.get("count_include_pad", 0) or not own.any()
    return {"pads": pads.tolist(), "count_include_pad": 1} if counts else None


def _margins(pad: gs.Node, spatial: int, filled: float) -> NDArray[np.int64] | None:
    """Returns how far a ``Pad`` extends each of the last axes, all starts first, or None.

    Args:
        pad: The node.
        spatial: Number of axes of position, behind those of batch and channels.
        filled: What it has to fill with.

    Returns:
        None if it fills otherwise, cuts off, or extends batch or channels.
    """
    given = [t for t in pad.inputs[1:] if not t.is_empty()]
    fixed = all(isinstance(t, gs.Constant) for t in given)
    if pad.attrs.get("mode", "constant") != "constant" or not fixed:
        return None
    values: list[Any] = [getattr(t, "values", None) for t in pad.inputs[1:]]
    sizes, value, axes = [*values, None, None][:3]
    if (0.0 if value is None else value) != filled:
        return None
    margins = np.zeros((2, spatial + 2), np.int64)
    margins[:, slice(None) if axes is None else axes] = sizes.reshape(2, -1)
    if (margins < 0).any() or margins[:, :2].any():
        return None
    return margins[:, 2:].reshape(-1)
