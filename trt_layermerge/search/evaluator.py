"""Whole networks: what a search asks to be done with them, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trt_layermerge.core.plan import MergePlan


@dataclass(frozen=True, slots=True)
class Measured:
    """A whole network, measured beside the original.

    Attributes:
        plan: What it is.
        ms: Latency: that of the original in the first measurement, divided by the speed-up, so that
            a host whose speed changes does not mix clocks.
        ratio: Speed-up over the original, paired by round.
        clock_ms: Latency by the clock of this very measurement, which a budget in ms is held to.
        ratios: Speed-up of each build, where the network was built several times.
        error: Why it could not be built or run; its latency is infinite then.
    """

    plan: MergePlan
    ms: float
    ratio: float
    clock_ms: float
    ratios: tuple[float, ...] = ()
    error: str | None = None


class Evaluator(Protocol):
    """Builds the whole networks of plans, to measure, score and train them."""

    def measure(self, plans: Sequence[MergePlan]) -> list[Measured]:
        """Returns each plan's latency, timed in turns with the original."""
        ...

    def measure_again(self, plan: MergePlan) -> Measured:
        """Returns a longer measurement of a network that was built anew, engines several times."""
        ...

    def joint_delta(self, plan: MergePlan) -> float:
        """Returns minus the loss of the whole repaired network, in the unit of the table."""
        ...

    @property
    def races(self) -> bool:
        """Whether plans are trained a little to tell which of them learns most."""
        ...

    def climb(self, plan: MergePlan, racer: int, rungs: int) -> list[float]:
        """Trains a plan's network up to a rung; what an earlier call trained is continued.

        Args:
            plan: What is trained.
            racer: Its number in the race.
            rungs: How many rungs in all.

        Returns:
            How good it was after each rung that it climbed now; higher is better, minus infinity
            where the training diverged.
        """
        ...
