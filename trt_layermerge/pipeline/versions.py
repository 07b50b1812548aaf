"""Versions of this project and of what it builds on."""

from __future__ import annotations

import platform
from importlib import metadata

from trt_layermerge import __version__

LIBRARIES = ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt-rtx", "numpy")


def versions(libraries: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Returns the version of each library, read without importing it."""
    found = {"trt-layermerge": __version__, "python": platform.python_version()}
    for name in libraries:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
