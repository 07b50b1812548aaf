"""The host: processor, memory, swap, disk."""

from __future__ import annotations

import re
from collections.abc import Iterable

from trt_layermerge.doctor.host import Finding, Host

GIB = 2**30
LOW_MEMORY_GIB = 2.0
LOW_DISK_GIB = 5.0
SMALL_JETSON_GIB = 8.0

_ADD_SWAP = (
    "sudo fallocate -l 4G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && "
    "sudo swapon /swapfile"
)


def system(host: Host, jetson: bool) -> tuple[Finding, ...]:
    """Returns what is known of the host."""
    return processor(host), memory(host, jetson), swap(host, jetson), disk(host)


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


def memory(host: Host, jetson: bool) -> Finding:
    """Returns how much memory there is, and how much of it is free."""
    sizes = _meminfo(host)
    if not {"MemTotal", "MemAvailable"} <= sizes.keys():
        return Finding("memory", "warning", "unknown: no /proc/meminfo")
    total, available = (sizes[key] / GIB for key in ("MemTotal", "MemAvailable"))
    found = f"{available:.1f} of {total:.1f} GiB free"
    if available >= LOW_MEMORY_GIB:
        return Finding("memory", "ok", found)
    remedy = "close other programs"
    if jetson:  # the GPU needs whole pieces, and only a start gathers them again
        remedy += "; sudo reboot gives back memory in pieces too small for the GPU"
    return Finding("memory", "warning", f"{found}; building an engine may be killed", remedy)


def swap(host: Host, jetson: bool) -> Finding:
    """Returns the swap on disk and in compressed memory; a small Jetson needs some on disk."""
    devices = [line.split() for line in (host.read("proc/swaps") or "").splitlines()[1:]]
    compressed = _total_gib(d for d in devices if "zram" in d[0])
    on_disk = _total_gib(d for d in devices if "zram" not in d[0])
    found = f"{on_disk:.1f} GiB on disk, {compressed:.1f} GiB zram"
    small = _meminfo(host).get("MemTotal", 0) / GIB <= SMALL_JETSON_GIB
    if jetson and small and on_disk == 0:
        found += "; building an engine may be killed (swap does not help GPU allocations)"
        if compressed:
            found += ", and zram takes what it compresses from the same memory"
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
