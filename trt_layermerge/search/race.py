"""How well the networks of some plans learn: each is trained a little, as it would be in full.

What a network loses by its repairs alone tells little of what training leaves of that: a block
that is gone is learnt around within steps, a convolution that was fitted into the place of several
lacks what they could compute. The beginning of the training shows it. All climb the first rung, the
best go on: successive halving (Jamieson and Talwalkar, AISTATS 2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.search.evaluator import Evaluator

RUNGS, THROUGH = 3, 3
"""Rungs of the whole race; how many racers go on after the first. A rung's score is noisy, the
learning rate being high, so the mean over all rungs counts."""


@dataclass(frozen=True)
class Raced:
    """What a plan's network came to in a race.

    Attributes:
        scores: How good it was after each rung; minus infinity where its training diverged.
    """

    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """The mean over the rungs."""
        return fmean(self.scores)

    @property
    def merit(self) -> tuple[int, float]:
        """What is higher for the better of two: rungs, or -1 where it diverged, then the score."""
        return len(self.scores) if self.score > -math.inf else -1, self.score


def race(plans: Sequence[MergePlan], evaluator: Evaluator, tell: Callbacks) -> list[Raced]:
    """Returns how good each plan's network is in the first steps of its training.

    Args:
        plans: Who races.
        evaluator: Trains them (``Evaluator.climb``).
        tell: What is called meanwhile.
    """
    through = min(THROUGH, len(plans)) if len(plans) > 1 else 0
    steps, scores = len(plans) + through, []
    for number, plan in enumerate(plans):
        tell.progress("racing", number, steps)
        scores.append(evaluator.climb(plan, number, 1))
    order = sorted(range(len(plans)), key=lambda number: -scores[number][0])
    for place, number in enumerate(order[:through], len(plans)):
        tell.progress("racing", place, steps)
        if scores[number][0] > -math.inf:
            more = evaluator.climb(plans[number], number, RUNGS)
            scores[number] = [*scores[number], *more][-RUNGS:]  # all anew where bits differed
    tell.progress("racing", steps, steps)
    return [Raced(tuple(found)) for found in scores]
