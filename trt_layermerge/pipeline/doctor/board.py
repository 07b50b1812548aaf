"""The machine around the GPU: Jetson, JetPack, power mode, clocks, processor, memory, disk."""

from __future__ import annotations

import re
from collections.abc import Iterable

from trt_layermerge.pipeline.doctor.finding import Finding
from trt_layermerge.pipeline.doctor.host import Host

GIB = 2**30
LOW_MEMORY_GIB = 2.0
LOW_DISK_GIB = 5.0
SMALL_JETSON_GIB = 8.0

JETPACK_OF_L4T = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}
"""Major version of JetPack by release of Linux for Tegra."""

_ADD_SWAP = (
    "sudo fallocate -l 4G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && "
    "sudo swapon /swapfile"
)


def is_jetson(host: Host) -> bool:
    """Whether the machine is a Jetson."""
    return "Jetson" in _model(host) or host.read("etc/nv_tegra_release") is not None


def _model(host: Host) -> str:
    return host.read("proc/device-tree/model") or ""


def board(host: Host, jetson: bool) -> tuple[Finding, ...]:
    """Returns what is known of the machine; Jetson's own matters on a Jetson only."""
    own = (jetpack, power_mode, clocks, desktop) if jetson else ()
    module = Finding("jetson", "ok" if jetson else "none", _model(host) if jetson else "no")
    general = (processor(host), memory(host), swap(host, jetson), disk(host))
    return (module, *(probe(host) for probe in own), *general)


def jetpack(host: Host) -> Finding:
    """Returns the release of Linux for Tegra and the JetPack generation it belongs to."""
    text = host.read("etc/nv_tegra_release") or ""
    match = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", text)
    if match is None:
        return Finding(
            "jetpack",
            "warning",
            "release unknown: no /etc/nv_tegra_release",
            "dpkg -l nvidia-l4t-core",
        )
    release, revision = match.groups()
    generation = JETPACK_OF_L4T.get(int(release), "unknown")
    return Finding("jetpack", "ok", f"L4T {release}.{revision}, JetPack {generation}")


def power_mode(host: Host) -> Finding:
    """Returns the name of the power mode: latencies of different modes do not compare."""
    answer = host.ask(("nvpmodel", "-q"))
    match = re.search(r"NV Power Mode:\s*(\S+)", answer.output)
    if match is None:
        return Finding("power mode", "warning", "nvpmodel does not tell", "sudo nvpmodel -q")
    return Finding("power mode", "ok", f"{match[1]}; latencies of other modes do not compare")


def clocks(host: Host) -> Finding:
    """Returns whether the GPU's clock is locked: a free one makes latencies wander."""
    for name in ("*gpu*", "*ga10b*", "*gv11b*", "*gp10b*"):
        folder = f"sys/class/devfreq/{name}"
        low, high, now = (
            host.read_all(f"{folder}/{limit}_freq") for limit in ("min", "max", "cur")
        )
        if low and high and now:
            found = f"GPU at {_mhz(now[0])} of {_mhz(low[0])} to {_mhz(high[0])} MHz"
            if low[0] == high[0]:
                return Finding("clocks", "ok", f"{found}, locked")
            return Finding("clocks", "warning", f"{found}, not locked", "sudo jetson_clocks")
    return Finding("clocks", "warning", "GPU clock unknown", "sudo jetson_clocks --show")


def _mhz(hertz: str) -> str:
    return str(int(hertz) // 1_000_000) if hertz.isdecimal() else "?"


def desktop(host: Host) -> Finding:
    """Returns whether a desktop shares the memory with the GPU."""
    if host.ask(("systemctl", "get-default")).output != "graphical.target":
        return Finding("desktop", "ok", "none")
    return Finding(
        "desktop",
        "warning",
        "a desktop starts with the machine and takes memory from the GPU",
        "sudo systemctl set-default multi-user.target && sudo reboot",
    )


def processor(host: Host) -> Finding:
    """Returns the processor, the cores that may be used, and what governs their clocks."""
    info = host.read("proc/cpuinfo") or ""
    cores = len(re.findall(r"^processor\s*:", info, re.MULTILINE))
    name = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    allowed = re.search(
        r"^Cpus_allowed_list:\s*(\S+)", host.read("proc/self/status") or "", re.MULTILINE
    )
    governors = sorted(set(host.read_all("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")))
    found = f"{name[1] if name else host.machine}, {cores or 'unknown number of'} cores"
    found += f" ({allowed[1]} usable)" if allowed else ""
    if not governors:
        return Finding("processor", "ok", f"{found}, clock not governed here")
    found += f", governor {', '.join(governors)}"
    if governors == ["performance"]:
        return Finding("processor", "ok", found)
    return Finding(
        "processor",
        "warning",
        f"{found}: latencies wander",
        "sudo cpupower frequency-set -g performance",
    )


def memory(host: Host) -> Finding:
    """Returns how much memory there is, and how much of it is free."""
    sizes = _meminfo(host)
    if not {"MemTotal", "MemAvailable"} <= sizes.keys():
        return Finding("memory", "warning", "unknown: no /proc/meminfo")
    total, available = (sizes[key] / GIB for key in ("MemTotal", "MemAvailable"))
    found = f"{available:.1f} of {total:.1f} GiB free"
    if available >= LOW_MEMORY_GIB:
        return Finding("memory", "ok", found)
    return Finding(
        "memory", "warning", f"{found}; building an engine may be killed", "close other programs"
    )


def swap(host: Host, jetson: bool) -> Finding:
    """Returns the swap on disk and in compressed memory; a small Jetson needs some on disk."""
    devices = [line.split() for line in (host.read("proc/swaps") or "").splitlines()[1:]]
    compressed = _total_gib(d for d in devices if "zram" in d[0])
    on_disk = _total_gib(d for d in devices if "zram" not in d[0])
    found = f"{on_disk:.1f} GiB on disk, {compressed:.1f} GiB zram"
    small = _meminfo(host).get("MemTotal", 0) / GIB <= SMALL_JETSON_GIB
    if jetson and small and on_disk == 0:
        found += "; building an engine may be killed (swap does not help GPU allocations)"
        return Finding("swap", "warning", found, _ADD_SWAP)
    return Finding("swap", "ok", found)


def _total_gib(devices: Iterable[list[str]]) -> float:
    return sum(int(d[2]) for d in devices) * 1024 / GIB


def _meminfo(host: Host) -> dict[str, int]:
    """Returns the sizes of /proc/meminfo in bytes, by name."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB", host.read("proc/meminfo") or "", re.MULTILINE)
    return {name: int(size) * 1024 for name, size in lines}


def disk(host: Host) -> Finding:
    """Returns the free space where runs are kept."""
    if host.free_bytes is None:
        return Finding("disk", "warning", "free space unknown")
    free = host.free_bytes / GIB
    if free >= LOW_DISK_GIB:
        return Finding("disk", "ok", f"{free:.0f} GiB free")
    return Finding(
        "disk", "warning", f"only {free:.1f} GiB free", "choose --runs-dir on another disk"
    )
