"""What is known of the device that measures, as it stands in the header of the results."""

from __future__ import annotations

import platform
from typing import Any

from trt_layermerge import __version__
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.errors import DeviceError
from trt_layermerge.measure.agent import jetson
from trt_layermerge.measure.agent.sources import LOCAL, Reading, Sources
from trt_layermerge.measure.agent.telemetry import GpuClock, gpu_clock, power_mode


def read_facts(device: DeviceInfo, sources: Sources = LOCAL) -> dict[str, Any]:
    """Returns versions, power mode and clock range; None where unknown, and why in ``missing``."""
    clock = gpu_clock(sources)
    readings: dict[str, Reading[Any]] = {
        "tensorrt": _tensorrt(device),
        "cuda": _cuda(device),
        "jetpack": jetson.release(sources),
        "power_mode": power_mode(sources),
        "gpu_clock_range_mhz": _clock_range(clock),
        "gpu_clock_locked": _locked(clock),
        "gpu_clock": Reading(str(clock.value) if clock.value else None, clock.reason),
    }
    return {
        "agent": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: reading.value for name, reading in readings.items()},
        "missing": {name: r.reason for name, r in readings.items() if r.value is None},
    }


def _tensorrt(device: DeviceInfo) -> Reading[str]:
    if device.backend.startswith("tensorrt"):
        return Reading(device.backend_version)
    return Reading(None, f"the backend is {device.backend}")


def _cuda(device: DeviceInfo) -> Reading[str]:
    if not device.backend.startswith("tensorrt"):
        return Reading(None, f"the backend is {device.backend}")
    from trt_layermerge.backends.cuda import find_cuda

    try:
        return Reading(find_cuda().version())
    except DeviceError as error:
        return Reading(None, str(error))


def _locked(clock: Reading[GpuClock]) -> Reading[bool]:
    if clock.value is None:
        return Reading(None, clock.reason)
    return Reading(clock.value.locked, "nvidia-smi does not tell whether it is")


def _clock_range(clock: Reading[GpuClock]) -> Reading[list[float]]:
    if clock.value is None:
        return Reading(None, clock.reason)
    if clock.value.range_mhz is None:
        return Reading(None, "nvidia-smi does not tell which clocks are allowed")
    return Reading(list(clock.value.range_mhz))
