"""``bench.json``: original and merged network at every precision, in one interleaved run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from trt_layermerge.backends import Backend
from trt_layermerge.core.device import DeviceInfo, Precision
from trt_layermerge.errors import UsageError
from trt_layermerge.measure.conditions import Conditions, Watch, device_here, not_comparable
from trt_layermerge.measure.energy import Energy
from trt_layermerge.measure.timing import Ratio, Timing, Turns, quantile, speedup, time_models

ROUNDS = 40
BURST_MS = 10.0
SPREAD = "10th to 90th percentile over rounds"

Pair: TypeAlias = tuple[bytes, bytes]
"""The original and the merged network, as the backend opens them."""

Timings: TypeAlias = Mapping[Precision, tuple[Timing, Timing]]


@dataclass(frozen=True, slots=True)
class NetworkLatency:
    """Latency of one network over all its runs, in ms, and what it cost.

    Attributes:
        p10_ms: 10th percentile of the runs.
        p50_ms: Median.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        best_ms: The least of the round medians, which tables and budgets mean by latency.
        throughput: Images per second over all runs.
        runs: Number of runs.
        method: How it was timed: ``call``, ``enqueue`` or ``graph`` (``Runner.method``).
        enqueue_ms: What the host needs to launch one run without a graph; None off the GPU.
        power_w: Mean power while it ran in a row, or None.
        energy_mj: Energy of one run above idle, in mJ, or None.
    """

    p10_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    best_ms: float
    throughput: float
    runs: int
    method: str = "call"
    enqueue_ms: float | None = None
    power_w: float | None = None
    energy_mj: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready mapping."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Pairing:
    """Both networks at one precision.

    Attributes:
        precision: Their precision.
        original: The original network.
        merged: The merged network.
        ratio: Speed-up of the merged one, paired by round.
        warnings: Reasons not to rely on the figures, one sentence each.
    """

    precision: Precision
    original: NetworkLatency
    merged: NetworkLatency
    ratio: Ratio
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready mapping."""
        return {
            "precision": self.precision,
            "original": self.original.to_json(),
            "merged": self.merged.to_json(),
            **_spread(self.ratio),
            "doubts": list(self.warnings),
        }


@dataclass(frozen=True)
class Bench:
    """Both networks at every precision, measured side by side.

    Attributes:
        device: Where.
        batch: Images per run.
        rounds: Interleaved rounds.
        pairings: One for each precision.
        int8: The precision that the merged int8 network is held against, and how often faster than
            that it is; None where the two were not timed together.
        conditions: The machine meanwhile.
        power_note: Why power or energy is None, or None.
    """

    device: DeviceInfo
    batch: int
    rounds: int
    pairings: tuple[Pairing, ...]
    int8: tuple[Precision, Ratio] | None = None
    conditions: Conditions = field(default_factory=Conditions)
    power_note: str | None = None

    def __getitem__(self, precision: Precision) -> Pairing:
        """Returns both networks at a precision."""
        return next(pairing for pairing in self.pairings if pairing.precision == precision)

    def to_json(self) -> dict[str, Any]:
        """Returns the body of ``bench.json``, but for the figures of the precision measured."""
        reasons = not_comparable(self.device, self.conditions)
        return {
            "device": self.device.to_json(),
            "batch": self.batch,
            "rounds": self.rounds,
            "spread": SPREAD,
            "comparable": not reasons,
            "reason": "; ".join(reasons) or None,
            "precisions": [pairing.to_json() for pairing in self.pairings],
            "int8": None if self.int8 is None else _verdict(*self.int8),
            "conditions": self.conditions.to_json(),
            "power_note": self.power_note,
        }


def bench(
    models: Mapping[Precision, Pair],
    backend: Backend,
    *,
    batch: int,
    rounds: int = ROUNDS,
    energy: Callable[[bytes, Backend], Energy] | None = None,
) -> Bench:
    """Returns latencies and speed-ups, all from the same rounds.

    Args:
        models: Original and merged network by precision, as the backend opens them.
        backend: Where to measure.
        batch: Images per run that all models take; it gives the throughput.
        rounds: Bursts of each network, alternating.
        energy: Measures the power of one network, once all are timed; None leaves it out.

    Raises:
        UsageError: If there is nothing to measure.
        DeviceError: If a network cannot be built or run.
    """
    if batch < 1 or rounds < 1 or not models:
        raise UsageError(
            f"{len(models)} precisions, batch {batch} and {rounds} rounds: each must be at least 1"
        )
    watch = Watch()
    flat = [model for pair in models.values() for model in pair]
    timings = iter(time_models(flat, backend, Turns(rounds, BURST_MS)))
    found = {precision: (next(timings), next(timings)) for precision in models}
    result = assemble(found, device_here(backend), batch, backend.int8_fallback)
    result = replace(result, conditions=watch.conditions())
    return result if energy is None else _with_energy(result, models, backend, energy)


def assemble(timings: Timings, device: DeviceInfo, batch: int, rest: Precision) -> Bench:
    """Returns what timings amount to.

    Args:
        timings: Original and merged by precision; all of the same rounds.
        device: Where they were timed.
        batch: Images per run.
        rest: The float precision that int8 has to beat (``Backend.int8_fallback``).
    """
    pairings = tuple(_pairing(p, *pair, batch) for p, pair in timings.items())
    both = {"int8", rest} <= timings.keys()
    int8 = (rest, speedup(timings[rest][1], timings["int8"][1])) if both else None
    rounds = max(timing.rounds for pair in timings.values() for timing in pair)
    return Bench(device, batch, rounds, pairings, int8)


def _pairing(precision: Precision, first: Timing, second: Timing, batch: int) -> Pairing:
    warnings = [
        f"{name}: {warning}"
        for name, timing in (("original", first), ("merged", second))
        for warning in timing.warnings()
    ]
    ratio = speedup(first, second)
    return Pairing(
        precision, _latency(first, batch), _latency(second, batch), ratio, tuple(warnings)
    )


def _latency(timing: Timing, batch: int) -> NetworkLatency:
    runs = timing.runs_ms
    return NetworkLatency(
        p10_ms=quantile(runs, 0.1),
        p50_ms=quantile(runs, 0.5),
        p90_ms=quantile(runs, 0.9),
        p99_ms=quantile(runs, 0.99),
        best_ms=timing.ms,
        throughput=1000 * batch * len(runs) / sum(runs),
        runs=len(runs),
        method=timing.method,
        enqueue_ms=timing.enqueue_ms,
    )


def _with_energy(
    found: Bench,
    models: Mapping[Precision, Pair],
    backend: Backend,
    energy: Callable[[bytes, Backend], Energy],
) -> Bench:
    """Measures power one network at a time; stops at the first that has none to read."""
    pairings, note = [], None
    for pairing in found.pairings:
        sides = []
        pair = zip((pairing.original, pairing.merged), models[pairing.precision], strict=True)
        for side, model in pair:
            spent = energy(model, backend) if note is None else Energy(reason=note)
            note = spent.reason
            sides.append(replace(side, power_w=spent.watts, energy_mj=spent.millijoules))
        pairings.append(replace(pairing, original=sides[0], merged=sides[1]))
    return replace(found, pairings=tuple(pairings), power_note=note)


def _spread(ratio: Ratio) -> dict[str, float]:
    return {"speedup": ratio.value, "low": ratio.p10, "high": ratio.p90}


def _verdict(over: Precision, ratio: Ratio) -> dict[str, Any]:
    """Returns how int8 stands against a float precision; faster means beyond the spread."""
    return {"over": over, **_spread(ratio), "faster": ratio.p10 > 1}
