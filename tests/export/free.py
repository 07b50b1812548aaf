"""A model with a free batch, as an export with a dynamic one gives it."""

from __future__ import annotations

import onnx

from trt_layermerge.export.batch import with_batch

STANDS_FOR_ANY = 97


def free_batch(model: bytes) -> bytes:
    """Returns the model with a free first dimension, called ``batch``, of inputs and outputs."""
    found = onnx.load_from_string(with_batch(model, STANDS_FOR_ANY))
    del found.graph.value_info[:]
    for value in (*found.graph.input, *found.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    free = onnx.shape_inference.infer_shapes(found, strict_mode=True)
    onnx.checker.check_model(free, full_check=True)
    return free.SerializeToString(deterministic=True)
