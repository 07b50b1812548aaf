"""What is known of the device that measures, as it stands in the header of the results."""

from __future__ import annotations

import platform
from typing import Any

from trt_layermerge import __version__
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.errors import DeviceError
from trt_layermerge.measure.agent import jetson
from trt_layermerge.measure.agent.sources import LOCAL, Reading, Sources
from trt_layermerge.measure.agent.telemetry import gpu_clock, power_mode


def read_facts(device: DeviceInfo, sources: Sources = LOCAL) -> dict[str, Any]:
    """Returns versions, power mode and clock range; None where unknown, and why in ``missing``."""
    clock = gpu_clock(sources)
    known, unknown = clock.value, clock.reason or "nvidia-smi does not tell"
    span = known.range_mhz if known else None
    readings: dict[str, Reading[Any]] = {
        "tensorrt": _tensorrt(device),
        "cuda": _cuda(device),
        "jetpack": jetson.release(sources),
        "power_mode": power_mode(sources),
        "gpu_clock_range_mhz": Reading(span and list(span), unknown),
        "gpu_clock_locked": Reading(known.locked if known else None, unknown),
        "gpu_clock": clock.then(str),
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
