"""Memory that was used and is free again."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress


def release() -> None:
    """Gives free memory back to the system.

    The GNU C library keeps what lies between pieces in use: gigabytes, where values of many sizes
    came and went. Elsewhere nothing but a collection happens.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
