"""The opset of a serialised model, read without onnx, which the device does not have.

TensorRT 8 knows ONNX up to opset 17. Newer networks that use nothing new pass its parser; those of
opset 19 here are the int8 ones, whose float16 scales and stored int8 weights it does not take, and
what its parser says of them helps nobody.

A model is a protobuf message; its field 8 lists the opsets, each a message with a domain (field 1)
and a version (field 2): https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from typing import Iterator, Tuple, Union

from trt_layermerge.backends.tensorrt_api import TensorRTApi
from trt_layermerge.errors import UnsupportedModelError

TOO_NEW_FOR_8 = 19

_OPSETS, _DOMAIN, _VERSION = 8, 1, 2
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

Field = Tuple[int, Union[int, bytes]]


def check_opset(api: TensorRTApi, model: bytes) -> None:
    """Refuses what TensorRT 8 cannot read.

    Raises:
        UnsupportedModelError: If the model is too new for it; says what to choose.
    """
    opset = opset_of(model)
    if api.strongly_typed or opset is None or opset < TOO_NEW_FOR_8:
        return
    raise UnsupportedModelError(
        f"{api.flavor} {api.version} reads ONNX up to opset 17, and this network has opset "
        f"{opset}, which int8 needs; choose --precision fp16, or a device with TensorRT 10 "
        "(on a Jetson JetPack 6.1) or newer"
    )


def opset_of(model: bytes) -> int | None:
    """Returns the version of ONNX's own operators in a model, or None if the bytes do not tell."""
    try:
        for number, value in _fields(model):
            if number == _OPSETS and isinstance(value, bytes):
                entry = dict(_fields(value))
                version = entry.get(_VERSION)
                if entry.get(_DOMAIN, b"") in (b"", b"ai.onnx") and isinstance(version, int):
                    return version
    except (IndexError, ValueError):
        pass  # no protobuf: the parser says so better
    return None


def _fields(data: bytes) -> Iterator[Field]:
    """Yields number and value of every field. Raises ``IndexError`` and ``ValueError``."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        if kind == _LENGTH:
            size, position = _varint(data, position)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("a group")
        if position + size > len(data):
            raise ValueError("cut off")
        # What is not an opset may be the graph with all its weights, and is not copied.
        yield tag >> 3, data[position : position + size] if size < 256 else b""
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Returns a number of seven bits a byte, lowest first, and the position behind it."""
    value = shift = 0
    while data[position] & 0x80:
        value |= (data[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return value | data[position] << shift, position + 1
