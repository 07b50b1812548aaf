"""``bench.json``: the original and the merged network side by side, in one interleaved run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_layermerge.backends import Backend
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.errors import UsageError
from trt_layermerge.measure.timing import Ratio, Timing, quantile, speedup, time_models

ROUNDS = 40
BURST_MS = 10.0
SPREAD = "10th to 90th percentile over rounds"

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True, slots=True)
class NetworkLatency:
    """Latency of one network over all its runs, in ms.

    Attributes:
        p10_ms: 10th percentile of the runs.
        p50_ms: Median.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        best_ms: The least of the round medians, which tables and budgets mean by latency.
        throughput: Images per second over all runs.
        runs: Number of runs.
    """

    p10_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    best_ms: float
    throughput: float
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready mapping."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True)
class Bench:
    """Both networks, measured side by side.

    Attributes:
        device: Where.
        batch: Images per run.
        rounds: Interleaved rounds.
        original: The original network.
        merged: The merged network.
        ratio: Speed-up, paired by round.
        clocks: What is known of the clocks, in words.
    """

    device: DeviceInfo
    batch: int
    rounds: int
    original: NetworkLatency
    merged: NetworkLatency
    ratio: Ratio
    clocks: str

    def to_json(self) -> dict[str, Any]:
        """Returns the body of ``bench.json``."""
        return {
            "device": self.device.to_json(),
            "batch": self.batch,
            "rounds": self.rounds,
            "original": self.original.to_json(),
            "merged": self.merged.to_json(),
            "speedup": self.ratio.value,
            "low": self.ratio.p10,
            "high": self.ratio.p90,
            "spread": SPREAD,
            "clocks": self.clocks,
            "power_w": None,
            "power_note": "power is not read by this version",
        }


def bench(
    original: bytes,
    merged: bytes,
    backend: Backend,
    *,
    batch: int,
    rounds: int = ROUNDS,
    burst_ms: float = BURST_MS,
) -> Bench:
    """Returns the latency of both networks and the speed-up, all from the same rounds.

    Args:
        original: ONNX model of the original network.
        merged: ONNX model of the merged network.
        backend: Where to measure.
        batch: Images per run that both models take; it gives the throughput.
        rounds: Bursts of each network, alternating.
        burst_ms: How long a burst lasts, about.

    Raises:
        UsageError: If there is nothing to measure.
        DeviceError: If a network cannot be built or run.
    """
    if batch < 1 or rounds < 1:
        raise UsageError(f"batch {batch} and {rounds} rounds: both must be at least 1")
    load_before = _load()
    first, second = time_models([original, merged], backend, rounds=rounds, burst_ms=burst_ms)
    return Bench(
        device=backend.device(),
        batch=batch,
        rounds=rounds,
        original=_latency(first, batch),
        merged=_latency(second, batch),
        ratio=speedup(first, second),
        clocks=f"{_governor()}; load average {load_before} before and {_load()} after",
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
    )


def _governor() -> str:
    """Returns how the processor's clock is governed; nothing is known of a GPU's."""
    try:
        return f"CPU clock governed by {_GOVERNOR.read_text(encoding='utf-8').strip()}"
    except OSError:
        return "clocks cannot be read here and were not locked"


def _load() -> str:
    try:
        return f"{os.getloadavg()[0]:.2f}"
    except OSError:
        return "unknown"
