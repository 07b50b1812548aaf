"""Latency: specs timed one by one, networks timed whole, and the one predicted from the other.

The names are loaded when first used: importing the package imports neither onnx nor a backend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trt_layermerge.measure.fit import Observation as Observation
    from trt_layermerge.measure.fit import fit_latency as fit_latency
    from trt_layermerge.measure.store import LatencyStore as LatencyStore
    from trt_layermerge.measure.table import measure_specs as measure_specs
    from trt_layermerge.measure.timing import Timing as Timing
    from trt_layermerge.measure.timing import speedup as speedup
    from trt_layermerge.measure.timing import time_models as time_models

_HOMES = {
    "LatencyStore": "store",
    "Observation": "fit",
    "Timing": "timing",
    "fit_latency": "fit",
    "measure_specs": "table",
    "speedup": "timing",
    "time_models": "timing",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Imports a public name from its home when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
