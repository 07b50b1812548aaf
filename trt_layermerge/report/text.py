"""Numbers as readers see them. What is missing or not finite becomes a word, never a figure."""

from __future__ import annotations

import math
from typing import Any

from trt_layermerge.report.statistics import Interval

MISSING = "not measured"


def _word(value: float | None) -> str | None:
    """Returns the word for a value that is no figure, or None for a figure."""
    if value is None:
        return MISSING
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite"
    return None


def milliseconds(value: float | None) -> str:
    """Returns ``2.113 ms``: four digits that count, and a tenth above 100 ms."""
    word = _word(value)
    if word or value is None:
        return word or MISSING
    decimals = sum(abs(value) < bound for bound in (1, 10, 100)) + 1
    return f"{value:.{decimals}f} ms"


def quantity(value: float | None, unit: str) -> str:
    """Returns ``12.3 W``: three digits that count."""
    return _word(value) or f"{value:.3g} {unit}"


def percent(share: float | None, decimals: int = 1) -> str:
    """Returns ``89.8 %`` for 0.898."""
    return _word(share) or f"{100 * (share or 0):.{decimals}f} %"


def signed_percent(share: float | None) -> str:
    """Returns ``+1.4 %`` or ``−1.4 %``."""
    return _word(share) or f"{100 * (share or 0):+.1f} %".replace("-", "−")


def points(difference: float | None) -> str:
    """Returns ``−0.4 points`` for a difference of −0.004 between two shares."""
    return _word(difference) or f"{100 * (difference or 0):+.1f} points".replace("-", "−")


def points_interval(interval: Interval) -> str:
    """Returns ``−1.9 to +1.1`` points."""
    low, high = (points(end).removesuffix(" points") for end in interval)
    return f"{low} to {high}"


def percent_interval(interval: Interval) -> str:
    """Returns ``88.6 to 91.4 %``."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def decimal(value: float | None, decimals: int) -> str:
    """Returns ``17.3100``; a value that is missing is a dash."""
    return "–" if value is None else _word(value) or f"{value:.{decimals}f}"


def ratio(value: float | None) -> str:
    """Returns ``1.52x``."""
    return _word(value) or f"{value:.2f}x"


def seconds(value: float | None) -> str:
    """Returns ``0.42 s``, ``61.0 s`` or ``12 min 05 s``."""
    word = _word(value)
    if word or value is None:
        return word or MISSING
    if value < 600:
        return f"{value:.{2 if value < 10 else 1}f} s"
    return f"{int(value) // 60} min {int(value) % 60:02d} s"


def count(value: float | None) -> str:
    """Returns a whole number with thin spaces between thousands: ``1 204 000``."""
    return _word(value) or f"{round(value or 0):,}".replace(",", "\u2009")


def plain(value: Any) -> str:
    """Returns any JSON scalar as text: numbers short, booleans as yes and no."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _word(value) or f"{value:.6g}"
    return str(value)
