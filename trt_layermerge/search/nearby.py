"""Plans near the best one, to be scored whole.

A table adds up what single replacements lose. What they lose together differs, most where fits
follow each other, so the best sum is not the best network. Plans that are nearly as good are drawn
by solving exactly under perturbed losses (perturb-and-MAP; Papandreou and Yuille, ICCV 2011).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceTable

SPREADS = (0.3, 0.7)
"""Standard deviations of the logarithm of a loss, taken in turns."""


def perturbed(
    importance: ImportanceTable, spread: float, rng: np.random.Generator
) -> ImportanceTable:
    """Returns the table with every loss multiplied by an independent log-normal factor.

    Args:
        importance: The true table; left untouched.
        spread: Standard deviation of the factor's logarithm.
        rng: Gives the factors; its state moves on.
    """
    factors = np.exp(spread * rng.standard_normal(len(importance.entries)))
    entries = {
        key: replace(entry, delta=entry.delta * float(factor))
        for (key, entry), factor in zip(importance.entries.items(), factors, strict=True)
    }
    return ImportanceTable(entries, importance.notes)


def nearby_plans(
    solve: Callable[[ImportanceTable], MergePlan | None],
    importance: ImportanceTable,
    count: int,
    seed: int,
) -> list[MergePlan]:
    """Returns the different plans that ``count`` perturbed tables lead to, in the order drawn.

    Args:
        solve: An importance table → the best plan under it, or None where there is none.
        importance: The true table.
        count: How many to draw; the same plan is often drawn again.
        seed: Of all perturbations.
    """
    plans: dict[tuple[Candidate, ...], MergePlan] = {}
    for number, child in enumerate(np.random.SeedSequence(seed).spawn(count)):
        spread = SPREADS[number % len(SPREADS)]
        plan = solve(perturbed(importance, spread, np.random.default_rng(child)))
        if plan is not None:
            plans.setdefault(plan.candidates, plan)
    return list(plans.values())
