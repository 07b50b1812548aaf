"""Images by name or object, most with labels, in batches that become a network's inputs.

The names below are loaded when first used: names of data and what a recipe says about them are
understood without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trt_layermerge.data.images import Framing as Framing
    from trt_layermerge.data.loader import batches as batches
    from trt_layermerge.data.loader import pairs as pairs
    from trt_layermerge.data.sets import LabelledData as LabelledData
    from trt_layermerge.data.sets import Part as Part
    from trt_layermerge.data.sets import aligned as aligned
    from trt_layermerge.data.sets import class_list as class_list
    from trt_layermerge.data.sets import draw as draw
    from trt_layermerge.data.sets import held_labels as held_labels
    from trt_layermerge.data.sets import open_data as open_data
    from trt_layermerge.data.sets import order_note as order_note
    from trt_layermerge.data.sets import split as split

_HOMES = {
    "Framing": "images",
    "LabelledData": "sets",
    "Part": "sets",
    "aligned": "sets",
    "batches": "loader",
    "class_list": "sets",
    "draw": "sets",
    "held_labels": "sets",
    "open_data": "sets",
    "order_note": "sets",
    "pairs": "loader",
    "split": "sets",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Imports a name from its home when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
