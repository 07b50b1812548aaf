"""Networks by name: from a library, a factory or an ONNX file, with weights that are read safely.

``networks`` makes them, ``weights`` reads and fills in their tensors, and ``pretrained`` knows how
those of a library were trained to see images.
"""

from __future__ import annotations

PRETRAINED = "pretrained"
"""Weights that a library has of its own."""

ONNX = ".onnx"
"""Ending of a file that is a network by itself."""
