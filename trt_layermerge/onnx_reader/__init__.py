"""ONNX models as networks of torch: to be traced, trained and merged, or to be run as they are.

``files`` reads a file, or, by ``cutting``, a part of it, and has it compared with ONNX Runtime
(``compare``); ``preparing`` makes a model's graph plain, and ``reader`` has it converted. The
``operators`` are a table, with ``layers``, ``products``, ``shaping`` and ``resize`` for the larger
ones; the ``converter`` is what they write to.
"""

from __future__ import annotations

from trt_layermerge.onnx_reader.files import load_onnx, onnx_hashes
from trt_layermerge.onnx_reader.preparing import model_inputs
from trt_layermerge.onnx_reader.reader import parse_onnx, read_onnx

__all__ = ["load_onnx", "model_inputs", "onnx_hashes", "parse_onnx", "read_onnx"]
