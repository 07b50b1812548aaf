"""Libraries that run networks, behind one contract. Importing this imports none of them."""

from __future__ import annotations

from trt_layermerge.backends.base import Backend, Runner
from trt_layermerge.backends.registry import BACKENDS, get_backend

__all__ = ["BACKENDS", "Backend", "Runner", "get_backend"]
