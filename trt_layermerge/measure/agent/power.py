"""Power while something runs, beside what the same machine drew just before."""

from __future__ import annotations

import threading
import time
from statistics import mean
from types import TracebackType

from trt_layermerge.measure.agent.sources import LOCAL, Sources
from trt_layermerge.measure.agent.telemetry import power_w

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
        samples: Number of readings during the block.
        source: What the watts are the watts of.
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
        self.source = self.reason = ""

    @property
    def mean_watts(self) -> float | None:
        """Mean during the block, or None."""
        return mean(self._busy) if self._busy else None

    @property
    def samples(self) -> int:
        """Number of readings during the block."""
        return len(self._busy)

    def joules(self, seconds: float) -> float | None:
        """Returns the energy above idle that ``seconds`` of the block took, or None."""
        if self.mean_watts is None or self.idle_watts is None:
            return None
        return (self.mean_watts - self.idle_watts) * seconds

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        watts, self.source = reading.value
        values.append(watts)
        return True
