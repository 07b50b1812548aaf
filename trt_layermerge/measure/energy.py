"""Power and energy of one network that runs in a row, where the machine tells its power."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from trt_layermerge.backends import Backend
from trt_layermerge.measure.timing import warm_up

SECONDS = 2.0
BURST_MS = 50.0


class Power(Protocol):
    """What a sampler has found out when it is left (``agent.power.PowerSampler``)."""

    idle_watts: float | None
    reason: str

    @property
    def mean_watts(self) -> float | None:
        """Mean power meanwhile, or None."""
        ...


@dataclass(frozen=True, slots=True)
class Energy:
    """What a network draws.

    Attributes:
        watts: Mean power of what the sampler reads: the board's on a Jetson, else the GPU's.
        millijoules: Energy of one run above idle.
        reason: Why one of them is None, or None.
    """

    watts: float | None = None
    millijoules: float | None = None
    reason: str | None = None


def energy_of(
    model: bytes,
    backend: Backend,
    sampler: Callable[[], AbstractContextManager[Power]],
    *,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Energy:
    """Returns power and energy of a network that runs for some seconds.

    Args:
        model: As the backend opens it.
        backend: Where to run it.
        sampler: Makes a sampler; it reads idle power when entered and stops when left.
        seconds: How long to run.
        clock: Seconds of a clock that only ever rises.

    Raises:
        DeviceError: If the network cannot be built or run.
    """
    with backend.open(model) as runner:
        count = warm_up(runner, BURST_MS)
        with sampler() as power:
            runs, started = 0, clock()
            while (elapsed := clock() - started) < seconds:
                runner.time_burst(count)
                runs += count
    if power.mean_watts is None or power.idle_watts is None:
        return Energy(power.mean_watts, reason=power.reason or "it ended before a reading")
    return Energy(power.mean_watts, 1000 * (power.mean_watts - power.idle_watts) * elapsed / runs)
