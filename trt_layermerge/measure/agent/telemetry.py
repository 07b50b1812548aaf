"""The state of a device before and after a measurement; what cannot be known is None, and why.

Nothing here needs root, nothing is changed, and every question is bounded in time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Dict, Mapping

from trt_layermerge.measure.agent import jetson, nvidia_smi
from trt_layermerge.measure.agent.sources import LOCAL, Reading, Sources

Readings = Dict[str, Reading[Any]]


@dataclass(frozen=True)
class DeviceState:
    """A GPU at one moment.

    Attributes:
        gpu_clock_mhz: Its clock.
        temperature_c: Its temperature.
        power_w: What it draws; on a Jetson the whole module.
        power_mode: Name of the Jetson's power mode.
        throttled: Whether power or temperature hold its clock down.
        throttle_events: How often a Jetson throttled for its supply since it started: if this rises
            during a measurement, the measurement was throttled.
        missing: Reason for every field that is None.
    """

    gpu_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_mode: str | None = None
    throttled: bool | None = None
    throttle_events: int | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready mapping."""
        return {**asdict(self), "missing": dict(self.missing)}

    @staticmethod
    def from_json(data: Mapping[str, Any] | None) -> DeviceState:
        """Returns the state that ``to_json`` wrote; what it lacks, or all of it, is None."""
        told = data or {}
        return DeviceState(**{f.name: told[f.name] for f in fields(DeviceState) if f.name in told})


@dataclass(frozen=True)
class GpuClock:
    """The clock of the GPU now, its lowest and highest allowed, and whether it can change.

    None where that is not told.
    """

    now_mhz: float
    range_mhz: tuple[float, float] | None
    locked: bool | None

    def __str__(self) -> str:
        """Returns the clock in words, such as ``306 MHz of 306 to 624, not locked``."""
        span = "" if self.range_mhz is None else " of {:.0f} to {:.0f}".format(*self.range_mhz)
        states = {None: "not known whether locked", True: "locked", False: "not locked"}
        return f"{self.now_mhz:.0f} MHz{span}, {states[self.locked]}"


def read_state(sources: Sources = LOCAL) -> DeviceState:
    """Returns the state of the device now."""
    readings = _of_jetson(sources) if jetson.is_jetson(sources) else _of_gpu(sources)
    values = {name: reading.value for name, reading in readings.items()}
    missing = {name: r.reason for name, r in readings.items() if r.value is None}
    return DeviceState(**values, missing=missing)


def gpu_clock(sources: Sources = LOCAL) -> Reading[GpuClock]:
    """Returns the clock of the GPU: one that is not locked makes latencies wander."""
    if jetson.is_jetson(sources):
        told = jetson.clock_mhz(sources)
        return told.then(lambda mhz: GpuClock(mhz[0], mhz[1:], mhz[1] == mhz[2]))
    clock = nvidia_smi.query(sources).number("clocks.gr")
    return clock.then(lambda mhz: GpuClock(mhz, None, None))  # it does not tell what -lgc set


def power_mode(sources: Sources = LOCAL) -> Reading[str]:
    """Returns the name of the power mode: latencies of different modes do not compare."""
    if jetson.is_jetson(sources):
        return jetson.power_mode(sources)
    return Reading(None, "not a Jetson: there are no power modes")


def power_w(sources: Sources = LOCAL) -> Reading[tuple[float, str]]:
    """Returns watts, and in words what they are the watts of."""
    if jetson.is_jetson(sources):
        return jetson.power_w(sources)
    drawn = nvidia_smi.query(sources).number("power.draw")
    return drawn.then(lambda watts: (watts, "nvidia-smi: the board"))


def _of_jetson(sources: Sources) -> Readings:
    return {
        "gpu_clock_mhz": jetson.clock_mhz(sources).then(lambda clock: clock[0]),
        "temperature_c": jetson.temperature_c(sources),
        "power_w": jetson.power_w(sources).then(lambda power: power[0]),
        "power_mode": jetson.power_mode(sources),
        "throttled": jetson.throttled(sources),
        "throttle_events": jetson.throttle_events(sources),
    }


def _of_gpu(sources: Sources) -> Readings:
    gpu = nvidia_smi.query(sources)
    return {
        "gpu_clock_mhz": gpu.number("clocks.gr"),
        "temperature_c": gpu.number("temperature.gpu"),
        "power_w": gpu.number("power.draw"),
        "power_mode": power_mode(sources),
        "throttled": gpu.throttled(),
        "throttle_events": Reading(None, "only a Jetson counts them"),
    }
