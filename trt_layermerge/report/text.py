"""Numbers as readers see them. What is missing or not finite becomes a word, never a figure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeGuard

from trt_layermerge.report.data import Interval

MISSING = "not measured"


def _written(value: float | None, write: Callable[[float], str]) -> str:
    """Returns a figure as ``write`` writes it, and a word for a value that is none."""
    if value is None:
        return MISSING
    if math.isfinite(value):
        return write(value)
    return "not a number" if math.isnan(value) else "infinite"


def is_positive(value: float | None) -> TypeGuard[float]:
    """Whether a value is a figure above 0."""
    return value is not None and math.isfinite(value) and value > 0


def milliseconds(value: float | None) -> str:
    """Returns ``2.113 ms``: four digits that count, and a tenth above 100 ms."""
    return _written(value, lambda v: f"{v:.{sum(abs(v) < n for n in (1, 10, 100)) + 1}f} ms")


def quantity(value: float | None, unit: str) -> str:
    """Returns ``12.3 W``: three digits that count."""
    return _written(value, lambda v: f"{v:.3g} {unit}")


def percent(share: float | None, decimals: int = 1) -> str:
    """Returns ``89.8 %`` for 0.898."""
    return _written(share, lambda v: f"{100 * v:.{decimals}f} %")


def signed_percent(share: float | None) -> str:
    """Returns ``+1.4 %`` or ``−1.4 %``."""
    return _written(share, lambda v: f"{100 * v:+.1f} %".replace("-", "−"))


def points(difference: float | None) -> str:
    """Returns ``−0.4 points`` for a difference of −0.004 between two shares."""
    return _written(difference, lambda v: f"{100 * v:+.1f} points".replace("-", "−"))


def points_interval(interval: Interval) -> str:
    """Returns ``−1.9 to +1.1 points``."""
    return " to ".join(map(points, interval)).replace(" points", "", 1)


def percents(interval: Interval) -> str:
    """Returns ``88.6 to 91.4 %``."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def decimal(value: float | None, decimals: int) -> str:
    """Returns ``17.3100``; a value that is missing is a dash."""
    return "–" if value is None else _written(value, lambda v: f"{v:.{decimals}f}")


def ratio(value: float | None) -> str:
    """Returns ``1.52x``."""
    return _written(value, "{:.2f}x".format)


def seconds(value: float | None) -> str:
    """Returns ``0.42 s``, ``61.0 s`` or ``12 min 05 s``."""
    if value is not None and 600 <= value < math.inf:
        return f"{int(value) // 60} min {int(value) % 60:02d} s"
    return _written(value, lambda v: f"{v:.{2 if v < 10 else 1}f} s")


def count(value: float | None) -> str:
    """Returns a whole number with thin spaces between thousands: ``1 204 000``."""
    return _written(value, lambda v: f"{round(v):,}".replace(",", "\u2009"))


def plain(value: Any) -> str:
    """Returns any JSON scalar as text: numbers short, booleans as yes and no."""
    if isinstance(value, float):
        return _written(value, "{:.6g}".format)
    words = {None: "none", True: "yes", False: "no"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
