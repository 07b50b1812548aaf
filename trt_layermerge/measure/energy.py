"""Power and energy of one network that runs in a row, where the machine tells its power."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean

from trt_layermerge.backends import Backend
from trt_layermerge.measure.agent.sources import LOCAL, Sources
from trt_layermerge.measure.agent.telemetry import power_w
from trt_layermerge.measure.timing import warm_up

SECONDS = 2.0
BURST_MS = 50.0
INTERVAL_SECONDS = 0.1
IDLE_SECONDS = 1.0


class PowerSampler:
    """Reads the power about ten times a second while its block runs.

    ``nvidia-smi`` averages over up to a second itself, and one line of ``tegrastats`` takes a
    second, so a block should last several seconds. Readings are of a whole board or module; what
    the idle machine draws is measured when the block is entered, and belongs subtracted.

    Attributes:
        idle_watts: Mean before the block, or None.
        mean_watts: Mean during the block, or None.
        reason: Why there are none.
    """

    def __init__(
        self,
        sources: Sources = LOCAL,
        *,
        idle_seconds: float = IDLE_SECONDS,
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> None:
        """Takes the machine, how long it is watched idle, and the pause between readings."""
        self._sources = sources
        self._idle_seconds = idle_seconds
        self._interval = interval_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._busy: list[float] = []
        self.idle_watts: float | None = None
        self.reason = ""

    @property
    def mean_watts(self) -> float | None:
        """Mean during the block, or None."""
        return mean(self._busy) if self._busy else None

    def __enter__(self) -> PowerSampler:
        """Watches the idle machine, then starts to read."""
        idle: list[float] = []
        until = time.monotonic() + self._idle_seconds
        while self._read_into(idle) and time.monotonic() < until:
            time.sleep(self._interval)
        if idle:
            self.idle_watts = mean(idle)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops to read."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _sample(self) -> None:
        while self._read_into(self._busy) and not self._stop.wait(self._interval):
            pass

    def _read_into(self, values: list[float]) -> bool:
        """Adds a reading; says whether there was one."""
        reading = power_w(self._sources)
        if reading.value is None:
            self.reason = reading.reason
            return False
        values.append(reading.value[0])
        return True


@dataclass(frozen=True, slots=True)
class Energy:
    """What a network draws, and the reason where one of these is None.

    Mean power is that of what the sampler reads: the board's on a Jetson, else the GPU's. Energy
    is that of one run above idle.
    """

    watts: float | None = None
    millijoules: float | None = None
    reason: str | None = None


def energy_of(
    model: bytes,
    backend: Backend,
    sampler: Callable[[], PowerSampler] = PowerSampler,
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
