"""Which learning rate an arm takes: the one that serves it best at all of its speed-ups."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean


def choice(
    rates: Collection[float], speedups: Sequence[float], found: Mapping[tuple[float, float], float]
) -> float | None:
    """Returns the rate with the best mean accuracy over the speed-ups, the lowest of equals.

    Args:
        rates: What may be chosen.
        speedups: Where every rate is tried.
        found: Accuracy after training by rate and speed-up.

    Returns:
        The rate; None while there is nothing to try, or while something was not tried yet.
    """
    tried = [(rate, speedup) for rate in rates for speedup in speedups]
    if not tried or any(one not in found for one in tried):
        return None
    return max(sorted(rates), key=lambda rate: fmean(found[rate, s] for s in speedups))
