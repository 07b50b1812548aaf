"""What the machine was like while it was timed, and whether its latencies compare with others.

A speed-up from interleaved rounds holds whatever the clocks do. A latency in milliseconds does not:
on a GPU whose clock is free, or in a host that shares its cores, it is marked.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from trt_layermerge.backends import Backend
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.measure.agent.sources import LOCAL, Reading, Sources
from trt_layermerge.measure.agent.telemetry import (
    DeviceState,
    GpuClock,
    gpu_clock,
    power_mode,
    read_state,
)

Clock: TypeAlias = Literal["gpu", "wall", "core"]

BUSY_SHARE = 0.25
"""Share of all cores that others may use before a wall clock is not believed."""

STEADY_MHZ = 15.0
"""NVIDIA's clocks move in steps of about this much; less is no movement."""


@dataclass(frozen=True)
class Conditions:
    """The machine before, during and after a measurement.

    Attributes:
        before: State of the device.
        after: The same, right after the last run.
        clock: What is known of the GPU's clock and its limits.
        others: Cores that other programs used on average meanwhile, or None if unknown.
        cores: Cores of the host, or None if unknown.
        governor: What governs the processor's clock, or None if unknown.
    """

    before: DeviceState = field(default_factory=DeviceState)
    after: DeviceState = field(default_factory=DeviceState)
    clock: Reading[GpuClock] = field(default_factory=lambda: Reading(None, "not looked at"))
    others: float | None = None
    cores: int | None = field(default_factory=os.cpu_count)
    governor: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready mapping."""
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "gpu_clock": str(self.clock.value or f"unknown: {self.clock.reason}"),
            "cores_of_others": self.others,
            "cores": self.cores,
            "cpu_governor": self.governor,
        }


class Watch:
    """Looks at the machine when it is made, and again when it is asked."""

    def __init__(self, sources: Sources = LOCAL) -> None:
        self._sources = sources
        self._before = read_state(sources)
        self._start = _busy_seconds(sources), _own_seconds(), time.perf_counter()

    def conditions(self) -> Conditions:
        """Returns what the machine was like since."""
        governor = self._sources.read("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        return Conditions(
            before=self._before,
            after=read_state(self._sources),
            clock=gpu_clock(self._sources),
            others=self.others(),
            governor=governor,
        )

    def others(self) -> float | None:
        """Returns cores that other programs used on average since, or None if unknown."""
        (busy, own, clock), now = self._start, _busy_seconds(self._sources)
        elapsed = time.perf_counter() - clock
        if busy is None or now is None or elapsed <= 0:
            return None
        return max(0.0, (now - busy - (_own_seconds() - own)) / elapsed)


def device_here(backend: Backend, sources: Sources = LOCAL) -> DeviceInfo:
    """Returns what a backend measures on here, in the power mode that the machine is in.

    It is the identity that the agent's answers have too. Raises ``DeviceError``.
    """
    return backend.device().in_mode(power_mode(sources).value)


def clock_of(device: DeviceInfo) -> Clock:
    """Returns what a backend's milliseconds are counted by."""
    if device.backend in ("tensorrt", "tensorrt_rtx") or "cuDNN" in device.settings:
        return "gpu"
    if device.backend == "fake" or "time on core" in device.settings:
        return "core"
    return "wall"


def not_comparable(device: DeviceInfo, found: Conditions) -> tuple[str, ...]:
    """Returns why latencies of this measurement do not compare with those of another; or nothing.

    Time that a thread spent on its core is not changed by what else runs, and always compares.
    """
    clock = clock_of(device)
    if clock == "gpu":
        return tuple(filter(None, (_free_clock(found), _throttled(found), _other_mode(found))))
    others, cores = found.others, found.cores or 1
    if clock == "wall" and others is not None and others > BUSY_SHARE * cores:
        return (
            f"other programs used {others:.1f} of {cores} cores meanwhile, and the "
            "wall clock counts waiting for a core; close them",
        )
    return ()


_LOCK = "lock it: sudo jetson_clocks on a Jetson, else sudo nvidia-smi -lgc MHZ,MHZ"


def _free_clock(found: Conditions) -> str | None:
    """Returns why the GPU's clock counts as free; where limits are not told, by what it did."""
    clock, limits = found.clock.value, found.clock.value and found.clock.value.locked
    before, after = found.before.gpu_clock_mhz, found.after.gpu_clock_mhz
    if clock is not None and limits is not None:
        return None if limits else f"the GPU's clock is free ({clock}); {_LOCK}"
    if before is None or after is None:
        return f"whether the GPU's clock is locked cannot be read ({found.clock.reason}); {_LOCK}"
    if abs(before - after) <= STEADY_MHZ:
        return None
    return f"the GPU's clock is free (it went from {before:.0f} to {after:.0f} MHz); {_LOCK}"


def _throttled(found: Conditions) -> str | None:
    before, after = found.before, found.after
    if before.throttled or after.throttled or before.throttle_events != after.throttle_events:
        return "the GPU was throttled; let it cool down, or choose a power mode that it can keep"
    return None


def _other_mode(found: Conditions) -> str | None:
    before, after = found.before.power_mode, found.after.power_mode
    return None if before == after else f"the power mode changed from {before} to {after}"


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _busy_seconds(sources: Sources) -> float | None:
    """Returns seconds that all cores together were busy since the host started."""
    try:
        fields = (sources.read("proc/stat") or "").splitlines()[0].split()
        ticks = [int(value) for value in fields[1:9]]
        idle = ticks[3] + ticks[4]
    except (IndexError, ValueError):
        return None
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")
