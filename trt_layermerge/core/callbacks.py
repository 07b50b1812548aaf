"""What a caller is told while work is under way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Callbacks:
    """Functions that are called while work is under way.

    Attributes:
        progress: Called with the name of the work, and how many of how many steps of it are done.
        note: Called with whatever is worth a line.
    """

    progress: Callable[[str, int, int], None] = lambda stage, done, total: None
    note: Callable[[str], None] = lambda text: None
