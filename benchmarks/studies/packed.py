"""Whole numbers, one an image, as a short text in a line of JSON."""

from __future__ import annotations

import base64
import zlib

import numpy as np
from numpy.typing import NDArray


def pack(numbers: NDArray[np.integer]) -> str:
    """Returns whole numbers ``(N,)`` below 2³¹ as text: int32, little-endian, zlib, base64."""
    return base64.b64encode(zlib.compress(numbers.astype("<i4").tobytes(), 9)).decode()


def unpack(text: str) -> NDArray[np.int64]:
    """Returns the whole numbers ``(N,)`` that ``pack`` wrote."""
    found = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i4")
    return found.astype(np.int64)
