"""What a Jetson tells of itself without root: clock, temperature, power, power mode, throttling.

Paths and formats are those of NVIDIA's developer guides for L4T 35 (JetPack 5) and 36 (JetPack 6)
and of the kernel's ``hwmon`` documentation. They have been read from recorded trees only.
"""

from __future__ import annotations

import re
from typing import Dict, Mapping

from trt_layermerge.measure.agent.sources import Reading, Sources

Rails = Dict[str, float]
"""Watts by name of the rail."""

_GPU_FOLDERS = ("*gpu*", "*ga10b*", "*gv11b*", "*gp10b*")
_WHOLE = ("VDD_IN", "VIN", "5V_IN", "POM_5V_IN")
_PARTS: tuple[tuple[str, ...], ...] = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin; memory hangs on the 5 V rail
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),  # Thor
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)
_TEGRASTATS = ("timeout", "1", "tegrastats", "--interval", "200")


def is_jetson(sources: Sources) -> bool:
    """Returns whether the machine is a Jetson."""
    model = sources.read("proc/device-tree/model") or ""
    return "Jetson" in model or sources.read("etc/nv_tegra_release") is not None


def release(sources: Sources) -> Reading[str]:
    """Returns the release of Linux for Tegra, such as ``L4T 36.4.3``, which tells JetPack."""
    text = sources.read("etc/nv_tegra_release")
    if text is None:
        return Reading(None, "not a Jetson: there is no /etc/nv_tegra_release")
    found = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", text)
    if found is None:
        return Reading(None, "/etc/nv_tegra_release has an unknown form")
    return Reading(f"L4T {found[1]}.{found[2]}")


def power_mode(sources: Sources) -> Reading[str]:
    """Returns the name of the power mode, such as ``25W``; its number varies with the release."""
    answer = sources.ask(("nvpmodel", "-q"))
    found = re.search(r"NV Power Mode:\s*(\S+)", answer.output)
    if found is None:
        return Reading(None, f"nvpmodel -q does not tell: {answer.words}")
    return Reading(found[1])


def clock_mhz(sources: Sources) -> Reading[tuple[float, float, float]]:
    """Returns the GPU's clock now, the lowest and the highest allowed; equal ones are locked."""
    for name in _GPU_FOLDERS:
        for folder in sources.find(f"sys/class/devfreq/{name}"):
            now, low, high = (sources.number(f"{folder}/{n}_freq") for n in ("cur", "min", "max"))
            if now is not None and low is not None and high is not None:
                return Reading((now / 1e6, low / 1e6, high / 1e6))
    return Reading(None, "no readable GPU below /sys/class/devfreq")


def temperature_c(sources: Sources) -> Reading[float]:
    """Returns the temperature of the GPU, or of the hottest spot while the GPU is powered off."""
    zones = {
        (sources.read(path) or "").lower(): path
        for path in sources.find("sys/class/thermal/thermal_zone*/type")
    }
    for name in ("gpu-therm", "gpu-thermal", "tj-therm", "tj-thermal"):
        if name in zones:
            millidegrees = sources.number(zones[name][: -len("type")] + "temp")
            if millidegrees is not None:
                return Reading(millidegrees / 1000)
    return Reading(None, f"no readable thermal zone of the GPU among {sorted(zones)}")


def throttled(sources: Sources) -> Reading[bool]:
    """Returns whether a temperature alert of the chip holds its clocks down right now."""
    states = [
        sources.number(path[: -len("type")] + "cur_state")
        for path in sources.find("sys/class/thermal/cooling_device*/type")
        if (sources.read(path) or "").endswith("-throttle-alert")
    ]
    known = [state for state in states if state is not None]
    if not known:
        return Reading(None, "no readable throttle alert below /sys/class/thermal")
    return Reading(any(state > 0 for state in known))


def throttle_events(sources: Sources) -> Reading[int]:
    """Returns how often the chip throttled for its supply since it started: only a rise tells."""
    counts = [sources.number(p) for p in sources.find("sys/class/hwmon/hwmon*/oc*_event_cnt")]
    known = [int(count) for count in counts if count is not None]
    if not known:
        return Reading(None, "no readable over-current counter below /sys/class/hwmon")
    return Reading(sum(known))


def power_w(sources: Sources) -> Reading[tuple[float, str]]:
    """Returns watts of the whole module and the rails that were added up, in words.

    The rails of the INA power monitors are read from ``hwmon``; where they do not make up the
    module, one line of ``tegrastats`` is waited for, which takes a second.
    """
    rails = hwmon_rails(sources)
    found = _whole(rails, "INA power monitor")
    if found.value is not None:
        return found
    answer = sources.ask(_TEGRASTATS)
    told = tegrastats_rails(answer.output)
    if told:
        second = _whole(told, "tegrastats")
        return second if second.value is not None or not rails else found
    if rails:
        return Reading(None, f"{found.reason}; tegrastats: {answer.words}")
    return Reading(None, f"no INA power monitor can be read; tegrastats: {answer.words}")


def hwmon_rails(sources: Sources) -> Rails:
    """Returns watts by rail from every INA monitor: mV times mA, or µW where the driver has it.

    An INA238 has one channel, which its driver does not label: the label of the whole monitor
    counts then, or else its place.
    """
    rails: Rails = {}
    for path in sources.find("sys/class/hwmon/hwmon*/name"):
        chip = sources.read(path) or ""
        if not chip.startswith("ina"):
            continue
        folder = path[: -len("/name")]
        channels = _channels(sources, folder)
        whole = sources.read(f"{folder}/label") if len(channels) == 1 else None
        for number in channels:
            watts = _watts(sources, folder, number)
            if watts is not None:
                label = sources.read(f"{folder}/in{number}_label") or whole
                place = f"{chip} without a label, {folder.rpartition('/')[2]} channel {number}"
                rails[label or place] = watts
    return rails


def _channels(sources: Sources, folder: str) -> list[str]:
    """Returns the numbers of a monitor's channels that tell a current or a power."""
    found = re.compile(rf"{re.escape(folder)}/(?:curr|power)(\d+)_input")
    paths = (found.fullmatch(path) for path in sources.find(f"{folder}/*_input"))
    return sorted({path[1] for path in paths if path is not None})


def _watts(sources: Sources, folder: str, channel: str) -> float | None:
    microwatts = sources.number(f"{folder}/power{channel}_input")
    if microwatts is not None:
        return microwatts / 1e6
    millivolts = sources.number(f"{folder}/in{channel}_input")
    milliamperes = sources.number(f"{folder}/curr{channel}_input")
    if millivolts is None or milliamperes is None:
        return None
    return millivolts * milliamperes / 1e6


def tegrastats_rails(text: str) -> Rails:
    """Returns watts by rail from the last line that has any, such as ``VDD_IN 4508mW/4400mW``."""
    for line in reversed(text.splitlines()):
        found = re.findall(r"(\w+) (\d+)mW(?:/\d+mW)?", line)
        if found:
            return {name: int(milliwatts) / 1000 for name, milliwatts in found}
    return {}


def _whole(rails: Mapping[str, float], source: str) -> Reading[tuple[float, str]]:
    """Returns the module's watts: its input where that is measured, else the sum of its parts."""
    inputs = ((name,) for name in _WHOLE)
    for names in (*inputs, *_PARTS):
        if all(name in rails for name in names):
            return Reading((sum(rails[n] for n in names), f"{source}: {' + '.join(names)}"))
    return Reading(None, f"which rails make up the module is not known for {sorted(rails)}")
