"""What a caller is told while work is under way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _no_progress(stage: str, done: int, total: int) -> None:
    """Ignores progress."""


def _no_note(text: str) -> None:
    """Ignores a note."""


@dataclass(frozen=True)
class Callbacks:
    """Functions that are called while work is under way.

    Attributes:
        progress: Called with the name of the work, and how many of how many steps of it are done.
        note: Called with whatever is worth a line.
    """

    progress: Callable[[str, int, int], None] = _no_progress
    note: Callable[[str], None] = _no_note
