"""What decides whether latencies compare and engines load: JetPack, power mode, clocks, power."""

from __future__ import annotations

import re

from trt_layermerge.doctor.host import Finding, Host
from trt_layermerge.measure.agent import jetson as tegra
from trt_layermerge.measure.agent import telemetry

JETPACK_OF_L4T: tuple[tuple[str, str, str], ...] = (
    ("32.", "4", "8.2"),
    ("35.", "5", "8.5"),
    ("36.2", "6.0", "8.6"),
    ("36.3", "6.0", "8.6"),
    ("36.", "6.1 or 6.2", "10.3"),
    ("38.", "7.0 or 7.1", "10.13"),
    ("39.", "7.2", "10.16"),
)
"""Begin of the release of Linux for Tegra, JetPack, and the TensorRT that comes with it."""

APT_TENSORRT = (
    "sudo apt install tensorrt python3-libnvinfer, and use a virtual environment made with "
    "python3 -m venv --system-site-packages"
)


def is_jetson(host: Host) -> bool:
    """Whether the machine is a Jetson."""
    return tegra.is_jetson(host.sources)


def board(
    host: Host, jetson: bool, tensorrt: str | None = None, gpu: bool = False
) -> tuple[Finding, ...]:
    """Returns what is known of the board.

    Args:
        host: The machine.
        jetson: Whether it is one; its own matters are looked at on a Jetson only.
        tensorrt: Version of the TensorRT that imports, or None.
        gpu: Whether a GPU was found.
    """
    model = host.read("proc/device-tree/model") or "a Jetson of unknown model"
    module = Finding("jetson", "ok" if jetson else "none", model if jetson else "no")
    if not jetson:
        return (module, *((power(host),) if gpu else ()), container(host, gpu))
    own = (jetpack(host, tensorrt), power_mode(host), clocks(host), power(host), desktop(host))
    return (module, *own, DLA, jetson_container(host))


def jetpack(host: Host, tensorrt: str | None) -> Finding:
    """Returns the release of Linux for Tegra, its JetPack, and whether TensorRT is of it."""
    release = tegra.release(host.sources)
    if release.value is None:
        return Finding("jetpack", "warning", release.reason, "dpkg -l nvidia-l4t-core")
    number = release.value.removeprefix("L4T ")
    known = next((row for row in JETPACK_OF_L4T if number.startswith(row[0])), None)
    if known is None:
        return Finding("jetpack", "ok", f"{release.value}, JetPack unknown to this version")
    _, name, comes_with = known
    found = f"{release.value}, JetPack {name}, which comes with TensorRT {comes_with}"
    if tensorrt is None or f"{tensorrt}.".startswith(f"{comes_with}."):
        return Finding("jetpack", "ok", found)
    found += f"; {tensorrt} is what Python finds, and an engine loads only where its version is"
    return Finding("jetpack", "warning", found, APT_TENSORRT)


def power_mode(host: Host) -> Finding:
    """Returns the name of the power mode: latencies of different modes do not compare."""
    mode = telemetry.power_mode(host.sources)
    if mode.value is None:
        return Finding("power mode", "warning", mode.reason, "sudo nvpmodel -q")
    return Finding(
        "power mode",
        "ok",
        f"{mode.value}; latencies of other modes do not compare (numbers of modes differ between "
        "releases, names tell; sudo nvpmodel -m NUMBER changes it)",
    )


def clocks(host: Host) -> Finding:
    """Returns whether the GPU's clock is locked: a free one makes latencies wander."""
    clock = telemetry.gpu_clock(host.sources)
    if clock.value is None:
        return Finding(
            "clocks",
            "warning",
            f"GPU clock unknown: {clock.reason}",
            "sudo jetson_clocks --show",
        )
    if clock.value.locked:
        return Finding("clocks", "ok", f"GPU at {clock.value}")
    return Finding("clocks", "warning", f"GPU at {clock.value}", "sudo jetson_clocks")


def power(host: Host) -> Finding:
    """Returns whether power can be read, and what the watts are of."""
    reading = telemetry.power_w(host.sources)
    if reading.value is None:
        found = f"cannot be read, so bench will not tell energy: {reading.reason}"
        return Finding("power", "warning", found)
    watts, source = reading.value
    return Finding("power", "ok", f"{watts:.1f} W now ({source}); bench tells energy above idle")


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


DLA = Finding(
    "dla",
    "none",
    "not used: a layer that the DLA cannot run falls back to the GPU silently, often slower",
)


def container(host: Host, gpu: bool) -> Finding:
    """Returns whether this is a container, and how to give it a GPU if it has none."""
    if not _contained(host):
        return Finding("container", "none", "no")
    if gpu:
        return Finding("container", "ok", "yes, with a GPU")
    found = "yes, and it sees a GPU only if it was started with one"
    return Finding("container", "ok", found, "docker run --gpus all IMAGE")


def jetson_container(host: Host) -> Finding:
    """Returns whether this is a container, and what it needs to tell power mode and power."""
    if not _contained(host):
        return Finding("container", "none", "no")
    if host.ask(("nvpmodel", "-q")).worked:
        return Finding("container", "ok", "yes, with the host's nvpmodel")
    return Finding(
        "container",
        "warning",
        "yes, without the host's nvpmodel and tegrastats: the power mode stays unknown",
        "docker run --runtime nvidia -v /usr/sbin/nvpmodel:/usr/sbin/nvpmodel:ro "
        "-v /etc/nvpmodel.conf:/etc/nvpmodel.conf:ro -v /var/lib/nvpmodel:/var/lib/nvpmodel:ro "
        "-v /usr/bin/tegrastats:/usr/bin/tegrastats:ro IMAGE",
    )


def _contained(host: Host) -> bool:
    marks = (host.read(name) for name in (".dockerenv", "run/.containerenv"))
    groups = host.read("proc/1/cgroup") or ""
    return any(mark is not None for mark in marks) or bool(
        re.search(r"docker|containerd|libpod|kubepods", groups)
    )
