"""ONNX models as networks of torch: to be traced, trained and merged, or to be run as they are.

``files`` reads a file and compares with ONNX Runtime, ``reader`` makes a model's graph plain and
has it converted; the ``operators`` are a table, with ``layers`` and ``resize`` for the larger ones,
and the ``converter`` is what they write to.
"""

from __future__ import annotations

from trt_layermerge.onnx_reader.files import load_onnx, onnx_hashes
from trt_layermerge.onnx_reader.reader import model_inputs, parse_onnx, read_onnx

__all__ = ["load_onnx", "model_inputs", "onnx_hashes", "parse_onnx", "read_onnx"]
