"""Makes trained CNNs shallower by measured latency, and builds TensorRT engines of them.

The names below are loaded when first used: importing the package imports neither torch nor
TensorRT.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trt_layermerge.core.candidate import Candidate as Candidate
    from trt_layermerge.core.conv import ConvSpec as ConvSpec
    from trt_layermerge.core.graph import LayerGraph as LayerGraph
    from trt_layermerge.core.plan import MergePlan as MergePlan
    from trt_layermerge.core.tables import ImportanceTable as ImportanceTable
    from trt_layermerge.core.tables import LatencyTable as LatencyTable
    from trt_layermerge.core.unit import Block as Block
    from trt_layermerge.kinds import enumerate_candidates as enumerate_candidates
    from trt_layermerge.merge import certify as certify
    from trt_layermerge.merge import collapse as collapse
    from trt_layermerge.merge import relax as relax
    from trt_layermerge.merge import repair as repair
    from trt_layermerge.search import solve as solve
    from trt_layermerge.session.compress import Result as Result
    from trt_layermerge.session.compress import compress as compress
    from trt_layermerge.session.session import Session as Session
    from trt_layermerge.tracing import trace as trace

__version__ = "0.1.0"

_HOMES = {
    "Block": "core.unit",
    "Candidate": "core.candidate",
    "ConvSpec": "core.conv",
    "ImportanceTable": "core.tables",
    "LatencyTable": "core.tables",
    "LayerGraph": "core.graph",
    "MergePlan": "core.plan",
    "Result": "session.compress",
    "Session": "session.session",
    "certify": "merge",
    "collapse": "merge",
    "compress": "session.compress",
    "enumerate_candidates": "kinds",
    "relax": "merge",
    "repair": "merge",
    "solve": "search",
    "trace": "tracing",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Imports a public name from its home when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
