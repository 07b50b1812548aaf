"""Who measures: this process, a child of it, or another device, behind one contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol, TypeAlias

from trt_layermerge.backends import Backend
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.errors import DeviceError, StickyDeviceError, UsageError, words_of
from trt_layermerge.measure.apart import Timer
from trt_layermerge.measure.bench import BURST_MS
from trt_layermerge.measure.conditions import Conditions, device_here
from trt_layermerge.measure.table import Progress, SpecRequest, measure_specs
from trt_layermerge.measure.timing import Timing, Turns, speedup, time_models


@dataclass(frozen=True)
class Beside:
    """One network measured beside the original, once for every build of both.

    Timings of the original and of the network are from the same rounds. ``conditions`` are those
    of the device before the first and after the last build, where it was looked at.
    """

    builds: tuple[tuple[Timing, Timing], ...]
    conditions: Conditions = field(default_factory=Conditions)

    @property
    def original_ms(self) -> float:
        """Latency of the original, the median over the builds."""
        return median(original.ms for original, _ in self.builds)

    @property
    def ms(self) -> float:
        """Latency of the network, the median over the builds."""
        return median(other.ms for _, other in self.builds)

    @property
    def ratio(self) -> float:
        """Speed-up over the original, paired by round, the median over the builds."""
        return median(self.ratios)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Speed-up of each build."""
        return tuple(speedup(original, other).value for original, other in self.builds)


@dataclass(frozen=True)
class Failed:
    """A network that could not be built or run, and why."""

    error: str


Outcome: TypeAlias = Beside | Failed


def silent(done: int, total: int) -> None:
    """Ignores progress."""


class Meter(Protocol):
    """Measures blocks and whole networks on one device."""

    def device(self) -> DeviceInfo:
        """Returns where it measures. Raises ``DeviceError`` if that is not there."""
        ...

    def specs(self, asked: SpecRequest, on_progress: Progress = silent) -> LatencyTable:
        """Returns the latency of every spec; one that fails is infinite, with the reason.

        Raises:
            CorruptInputError: If the store is damaged.
            DeviceError: If the device is not there, or refuses everything.
            UsageError: If precision or batch cannot be measured.
        """
        ...

    def networks(
        self,
        original: bytes,
        others: Sequence[bytes],
        rounds: int,
        builds: int = 1,
        on_progress: Progress = silent,
    ) -> list[Outcome]:
        """Returns each network's timing beside the original's, or why there is none.

        Args:
            original: ONNX model of the original network.
            others: ONNX models of the others.
            rounds: Bursts of each, in turns.
            builds: How often each pair is built and timed, where building is a matter of luck.
            on_progress: Called with the numbers of finished and of all networks.

        Raises:
            DeviceError: If the device is not there, or refuses everything.
        """
        ...


class BackendMeter:
    """Measures with a backend of this process, or with the same one in a child of it.

    Where a network fails, whatever is raised, each is timed alone beside the original. What ends
    or hangs a process can be caught only where that is a child.

    All networks are timed in one interleaved run, and one build of each is enough: none of the
    libraries that are used like this tries out kernels while it builds.

    Args:
        backend: What runs networks, and tells the device.
        apart: Opens the child that times; None to time in this process.
    """

    def __init__(
        self, backend: Backend, apart: Callable[[], AbstractContextManager[Timer]] | None = None
    ) -> None:
        def here(models: Sequence[bytes], turns: Turns) -> list[Timing]:
            return time_models(models, backend, turns)

        self.backend, self._opened = backend, apart or (lambda: nullcontext(here))

    def device(self) -> DeviceInfo:
        """Returns the device of the backend, in its power mode."""
        return device_here(self.backend)

    def specs(self, asked: SpecRequest, on_progress: Progress = silent) -> LatencyTable:
        """Returns the latency of every spec (``measure.table``)."""
        with self._opened() as timer:
            return measure_specs(asked, self.backend, timer, on_progress)

    def networks(
        self,
        original: bytes,
        others: Sequence[bytes],
        rounds: int,
        builds: int = 1,
        on_progress: Progress = silent,
    ) -> list[Outcome]:
        """Returns each network's timing beside the original's, from one run if none fails.

        Raises:
            DeviceError: If the original cannot be built or run.
        """
        with self._opened() as timer:
            return _beside(timer, original, others, rounds)


def _beside(timer: Timer, original: bytes, others: Sequence[bytes], rounds: int) -> list[Outcome]:
    try:
        first, *timings = timer([original, *others], Turns(rounds, BURST_MS))
    except (StickyDeviceError, UsageError):
        raise
    except Exception as error:  # libraries raise anything, and MemoryError
        if len(others) == 1:
            _beside(timer, original, [], 1)  # raises where it is the original that fails
            return [Failed(words_of(error))]
        if not others:
            raise DeviceError(words_of(error)) from error
        return [_beside(timer, original, [other], rounds)[0] for other in others]
    return [Beside(((first, timing),)) for timing in timings]
