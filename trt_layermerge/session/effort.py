"""How much of a search's work on whole networks there is time for, by what a network costs."""

from __future__ import annotations

from dataclasses import dataclass

from trt_layermerge.importance.amounts import Effort
from trt_layermerge.session.settings import Settings

REPAIRING: dict[Effort, float] = {"quick": 5e11, "normal": 1.5e12, "thorough": float("inf")}
"""Multiply-accumulates of repairing and scoring whole networks. A core does about 2e10 a second."""

RACING: dict[Effort, float] = {"quick": 2e12, "normal": 1e13, "thorough": float("inf")}
"""Multiply-accumulates of a race."""

FEWEST_FIT, FEWEST_SCORE = 128, 64
"""Images that a whole network is repaired and scored on at least, where there are as many."""

FEWEST_STEPS = 10
"""Steps of a rung below which a race tells nothing."""

A_STEP = 4
"""Forward passes that a step costs for each image: one of each network, and the way back."""

ACCELERATED = 50
"""How much faster an accelerator is than a processor, at least."""


@dataclass(frozen=True)
class Affordable:
    """How plans' whole networks are repaired and scored before one is chosen.

    Attributes:
        fit: Images to repair on.
        score: Images to score on.
        samples: Plans drawn around the best ones.
    """

    fit: int
    score: int
    samples: int


def affordable(macs: float, settings: Settings) -> Affordable:
    """Returns the most images and plans that the effort allows.

    Args:
        macs: Multiply-accumulates of the network for one image.
        settings: How much work it may be, and how much is wanted at most.
    """
    section, search = settings.importance, settings.search
    work = REPAIRING[section.effort] / macs
    fit, score = section.fit_images, section.score_images
    while (fit + score) * (search.samples + search.finalists) > work:
        smaller = max(min(fit, FEWEST_FIT), fit // 2), max(min(score, FEWEST_SCORE), score // 2)
        if smaller == (fit, score):
            break
        fit, score = smaller
    plans = int(min(work / (fit + score), search.samples + search.finalists))
    return Affordable(fit, score, max(0, plans - search.finalists))


def race_steps(macs: float, batch: int, rungs: int, settings: Settings) -> int:
    """Returns the steps of a rung that the effort allows; 0 for no race.

    Args:
        macs: Multiply-accumulates of the network for one image.
        batch: Images a step.
        rungs: Rungs that all racers climb together.
        settings: How much work it may be, how many steps at most, and where training runs.
    """
    work = RACING[settings.importance.effort] * (ACCELERATED if settings.device != "cpu" else 1)
    steps = min(settings.search.race_steps, work / (macs * A_STEP * batch * rungs))
    return int(steps) if steps >= min(FEWEST_STEPS, settings.search.race_steps) else 0
