"""One thing that ``doctor`` found out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["ok", "warning", "missing", "none"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, and what to type about it.

    Attributes:
        topic: What was looked at.
        state: ``ok``, ``warning`` (works, with a drawback), ``missing`` (not usable) or ``none``
            (does not apply to this machine).
        found: What there is, in words.
        remedy: What to type, or empty.
    """

    topic: str
    state: State
    found: str
    remedy: str = ""
