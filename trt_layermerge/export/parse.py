"""Bytes -> an ONNX model, or a refusal."""

from __future__ import annotations

import onnx

from trt_layermerge.errors import CorruptInputError


def parse_model(data: bytes) -> onnx.ModelProto:
    """Returns the model of some bytes.

    Raises:
        CorruptInputError: If they are no ONNX model, or one without nodes.
    """
    try:
        model = onnx.load_from_string(data)
    except Exception as error:  # protobuf's error class differs between its versions
        raise CorruptInputError(
            f"these bytes are no ONNX model ({error}); export it again"
        ) from error
    if not model.graph.node:
        raise CorruptInputError("the ONNX model has no nodes; export it again")
    return model
