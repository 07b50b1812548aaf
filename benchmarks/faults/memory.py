"""How much this process grew at most, by what it does in between."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

FLOOR_BYTES = 4 << 20
"""What the interpreter itself may take, whatever is read: modules for an error, buffers."""

_PROC = Path("/proc/self")
_libc = ctypes.CDLL(None)


def growth() -> Callable[[], int]:
    """Starts to watch; returns what tells by how many bytes the process grew at most since.

    What was freed goes back to the system first, so that nothing is taken from it unseen. Children
    do not count.
    """
    gc.collect()
    gc.freeze()  # what lives now need not be looked through again
    _libc.malloc_trim(0)
    (_PROC / "clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    return lambda: _status("VmHWM") - before


def growth_of(work: Callable[[], object]) -> int:
    """Returns by how many bytes some work makes the process grow at most, when done again."""
    work()  # imports
    grown = growth()
    work()
    return grown()


def _status(field: str) -> int:
    line = next(x for x in (_PROC / "status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) << 10
