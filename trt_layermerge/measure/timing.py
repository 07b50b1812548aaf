"""Several networks timed in one interleaved run, so that a drifting clock meets all alike."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil, inf
from statistics import mean, median, pstdev
from time import perf_counter
from typing import Callable

import numpy as np

from trt_layermerge.backends import Backend, Runner
from trt_layermerge.errors import DeviceError

BURST_MS = 2.0
ROUNDS = 20

DRIFT_LIMIT = 0.03
"""Largest change of a sentinel's latency between which other measurements still compare."""

VARIATION_LIMIT = 0.025
"""Largest coefficient of variation of a quiet run; trtexec warns above the same."""

LAUNCH_LIMIT = 0.8
"""Largest share of a latency that launching may take; trtexec warns above the same."""

_LEAST_ROUNDS = 3
_MOST_RUNS = 1000


@dataclass(frozen=True)
class Timing:
    """What one network took in an interleaved run.

    Attributes:
        round_ms: Median of each round's burst, in the order of the rounds.
        runs_ms: Every timed run, in order. On a GPU short runs are timed by the group, and each
            counts as the mean of its group.
        method: How it was timed, as ``Runner.method`` says.
        enqueue_ms: What the host needs to launch one run without a graph; None off the GPU.
    """

    round_ms: tuple[float, ...]
    runs_ms: tuple[float, ...]
    method: str = "call"
    enqueue_ms: float | None = None

    @property
    def samples(self) -> int:
        """Number of timed runs."""
        return len(self.runs_ms)

    @property
    def ms(self) -> float:
        """The least of the round medians: what it takes when nothing else disturbs."""
        return min(self.round_ms)

    @property
    def p10_ms(self) -> float:
        """10th percentile of the round medians."""
        return quantile(self.round_ms, 0.1)

    @property
    def p90_ms(self) -> float:
        """90th percentile of the round medians."""
        return quantile(self.round_ms, 0.9)

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(self.round_ms)

    @property
    def variation(self) -> float:
        """Coefficient of variation of the round medians."""
        return pstdev(self.round_ms) / mean(self.round_ms)

    def warnings(self) -> tuple[str, ...]:
        """Returns a sentence for every reason not to trust the figure, or not to rely on it."""
        found = []
        if self.variation > VARIATION_LIMIT:
            found.append(
                f"the rounds vary by {self.variation:.1%}, more than {VARIATION_LIMIT:.1%}: lock "
                "the clocks and stop other programs"
            )
        if self.enqueue_ms is not None and self.enqueue_ms > LAUNCH_LIMIT * self.ms:
            found.append(
                f"launching takes the host {self.enqueue_ms:.4f} ms, the GPU {self.ms:.4f} ms: "
                "without a CUDA graph the host decides the speed"
            )
        return tuple(found)


@dataclass(frozen=True)
class Ratio:
    """How often faster than a reference one is: median and percentiles of the ratios by round."""

    value: float
    p10: float
    p90: float


def speedup(reference: Timing, other: Timing) -> Ratio:
    """Returns how often faster ``other`` is, from rounds that both took part in.

    Raises:
        ValueError: If they were not timed in the same run, as far as can be seen.
    """
    if reference.rounds != other.rounds:
        raise ValueError(f"{reference.rounds} rounds cannot be paired with {other.rounds}")
    ratios = [a / b for a, b in zip(reference.round_ms, other.round_ms)]
    return Ratio(median(ratios), quantile(ratios, 0.1), quantile(ratios, 0.9))


@dataclass(frozen=True)
class Turns:
    """How networks are timed in turns.

    In every round each network has ``passes`` bursts, in turns with the others, each of as many
    runs as last about ``burst_ms``, and at least one. With ``burst_ms`` 0 a network runs once at a
    time, and finds the caches as the others left them.

    Attributes:
        rounds: Number of rounds.
        burst_ms: How long a burst lasts.
        passes: Bursts of each network in a round.
        limit_ms: A network that has used up this much sits out the rounds that are left, after
            three at least.
    """

    rounds: int = ROUNDS
    burst_ms: float = BURST_MS
    passes: int = 1
    limit_ms: float = inf


def time_models(models: Sequence[bytes], backend: Backend, turns: Turns) -> list[Timing]:
    """Returns the timing of each ONNX model: all open at once and timed in turns.

    Args:
        models: What to time.
        backend: Where.
        turns: How.

    Raises:
        DeviceError: If one cannot be built or run.
    """
    with ExitStack() as stack:
        runners = [stack.enter_context(backend.open(model)) for model in models]
        return time_runners(runners, turns)


def time_runners(runners: Sequence[Runner], turns: Turns) -> list[Timing]:
    """Returns the timing of each network that is open already and stays so, timed in turns.

    Raises:
        DeviceError: If one cannot be run.
    """
    counts = [warm_up(runner, turns.burst_ms) for runner in runners]
    medians: list[list[float]] = [[] for _ in runners]
    runs: list[list[float]] = [[] for _ in runners]
    for turn in range(turns.rounds):
        active = [
            i for i, past in enumerate(runs) if turn < _LEAST_ROUNDS or sum(past) <= turns.limit_ms
        ]
        rounded: dict[int, list[float]] = {i: [] for i in active}
        for _ in range(turns.passes):
            for i in active:
                rounded[i] += checked(runners[i].time_burst(counts[i]))
        for i, times in rounded.items():
            medians[i].append(median(times))
            runs[i] += times
    return [
        Timing(tuple(m), tuple(r), runner.method, runner.enqueue_ms)
        for m, r, runner in zip(medians, runs, runners)
    ]


def warm_up(runner: Runner, burst_ms: float, clock: Callable[[], float] = perf_counter) -> int:
    """Runs a network until it is warm; returns how many runs last ``burst_ms``.

    Warm means ``runner.warmup_ms`` of time on the wall: a GPU's clock rises with time, however
    little of it short runs keep the GPU busy.

    Args:
        runner: What to run.
        burst_ms: How long the bursts to come shall last.
        clock: Seconds of a clock that only ever rises.

    Raises:
        DeviceError: If it fails.
    """
    times = checked(
        runner.time_burst(1)
    )  # what is done only once is done now, before the clock counts
    own, fastest, count, started = sum(times), min(times), 1, clock()
    spent = own
    while spent < runner.warmup_ms:
        count = min(2 * count, _MOST_RUNS)
        times = checked(runner.time_burst(count))
        own += sum(times)
        fastest = min(fastest, *times)
        spent = max(own, 1000 * (clock() - started))  # a scripted run is faster than it says
    return min(_MOST_RUNS, max(1, ceil(burst_ms / max(fastest, 1e-6))))


def checked(times: list[float]) -> list[float]:
    """Returns times as they are, if they can be any.

    Raises:
        DeviceError: If there is none, or one is not above zero or not finite.
    """
    wrong = [ms for ms in times if not 0 < ms < inf]
    if wrong or not times:
        raise DeviceError(
            f"the device says that a run took {wrong[0] if times else 'no'} ms, which is no time; "
            "measure again, and check its driver if that does not help"
        )
    return times


def drift(first: Timing, again: Timing) -> float:
    """Returns by which share a sentinel became slower, negative where it became faster.

    Beyond ``DRIFT_LIMIT``, either way, whatever was measured in between is measured again.
    """
    return again.ms / first.ms - 1


def quantile(values: Sequence[float], fraction: float) -> float:
    """Returns a quantile by linear interpolation between the sorted values."""
    return float(np.quantile(values, fraction))
