"""One thing that ``doctor`` found out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

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

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready mapping."""
        return asdict(self)
