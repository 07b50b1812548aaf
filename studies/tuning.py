"""Which learning rate an arm takes: all are tried with the first seed, the best with every seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

THROUGH = 2
"""Rates that are tried with every seed: trainings differ by more than rates that are near."""

Try = tuple[float, int]
"""A learning rate and a seed."""


def tries(rates: Sequence[float], seeds: Sequence[int], found: Mapping[Try, float]) -> list[Try]:
    """Returns what a choice rests on, as far as it can be told from the accuracies that are known.

    Args:
        rates: What may be chosen.
        seeds: Seeds of training; the first one tries all rates.
        found: Accuracy after training by rate and seed.
    """
    first = [(rate, seeds[0]) for rate in rates]
    if any(one not in found for one in first):
        return first
    best = sorted(first, key=lambda one: (-found[one], one))[:THROUGH]
    return first + [(rate, seed) for rate, _ in sorted(best) for seed in seeds[1:]]


def choice(
    rates: Sequence[float], seeds: Sequence[int], found: Mapping[Try, float]
) -> float | None:
    """Returns the rate with the best mean accuracy, the lowest of equals.

    None while there are none, or while something that the choice rests on is not known.
    """
    rests_on = tries(rates, seeds, found)
    if not rests_on or any(one not in found for one in rests_on):
        return None
    means = {
        rate: fmean(found[rate, seed] for seed in seeds)
        for rate in sorted(rates)
        if all((rate, seed) in rests_on for seed in seeds)
    }
    return max(means, key=lambda rate: means[rate])
