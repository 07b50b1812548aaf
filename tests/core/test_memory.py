"""Free memory goes back to the system, though pieces between it are in use."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from trt_layermerge.core.memory import release

STATUS = Path("/proc/self/statm")


def resident_bytes() -> int:
    return int(STATUS.read_text().split()[1]) * 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the GNU C library keeps memory")
def test_free_memory_between_pieces_in_use_is_given_back() -> None:
    release()
    before = resident_bytes()
    held = [np.ones(12_000) for _ in range(2_000)]  # 96 kB each, from the heap
    kept, used = held[::50], resident_bytes() - before
    assert used > 150e6
    del held
    waiting = resident_bytes() - before
    release()
    assert waiting > 0.5 * used
    assert resident_bytes() - before < 0.2 * used
    assert all(piece.sum() == 12_000 for piece in kept)
