"""How many images score a table, so that it takes minutes whatever the network's size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Effort: TypeAlias = Literal["quick", "normal", "thorough"]

WORK: dict[Effort, float] = {"quick": 1.5e12, "normal": 4e12, "thorough": float("inf")}
"""Multiply-accumulates that scoring a table may take. A core does about 2e10 a second."""

TRIED = 3
"""Repairs that most candidates try."""

REFINED = 0.4
"""Share of the candidates that are refined, about."""

MORE = 4
"""How many times as many images serve to fit on where these are not enough."""

SAMPLED_POSITIONS = 256
"""Positions of one image at most that few images are worth; neighbours tell much the same."""


@dataclass(frozen=True)
class Amounts:
    """Images that a candidate is scored on.

    Attributes:
        score: For its score.
        screen: For the choice of its repair.
        first: For a first look with one repair at every candidate, after which only those that the
            frontier may need are scored; None where all are scored at once.
        few: Images to fit on where these have enough positions; None for all of them.
    """

    score: int
    screen: int = 32
    first: int | None = None
    few: int | None = None

    def to_fit(self, images: int) -> list[int]:
        """Returns how many images may serve to fit on, rising up to all of them."""
        counts, count = [], self.few or images
        while count < images:
            counts.append(count)
            count *= MORE
        return [*counts, images]


STEPS = (
    Amounts(256, 32, 32, 128),
    Amounts(128, 16, 16, 64),
    Amounts(64, 16, 16, 64),
    Amounts(64, 8, 8, 64),
    Amounts(32, 8, 8, 32),
    Amounts(32, 4, 4, 32),
)
"""From many images to few. Of 273 candidates of EfficientNet-Lite0, 64 images rank like 256 with a
Spearman correlation of .994, 32 with .990 and 8 with .971."""


def amounts_for(entries: int, macs: float, score_images: int, effort: Effort) -> Amounts:
    """Returns the most images that the effort allows; all at once on all of them where it can be.

    Args:
        entries: Candidates to score.
        macs: Multiply-accumulates of the network for one image.
        score_images: Images that there are to score on.
        effort: How much work it may be.
    """
    whole = Amounts(score_images)
    smaller = [step for step in STEPS if step.score <= score_images]
    for amounts in (whole, *smaller):
        if entries * macs * images_an_entry(amounts) <= WORK[effort]:
            return amounts
    return [whole, *smaller][-1]


def images_an_entry(amounts: Amounts) -> float:
    """Returns how many images run through a whole network for one entry, on average.

    Behind a block, on average half a network runs.
    """
    scored = (TRIED * amounts.screen + amounts.score) / 2
    if amounts.first is None:
        return scored
    return amounts.first / 2 + REFINED * scored
