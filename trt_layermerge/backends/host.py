"""What the host's processor and board call themselves."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_BOARD = Path("/proc/device-tree/model")
_TEGRA_RELEASE = Path("/etc/nv_tegra_release")


def board_name() -> str | None:
    """Returns the model of the board, such as ``NVIDIA Jetson Orin Nano …``; None on a PC."""
    try:
        return _BOARD.read_text(encoding="utf-8", errors="replace").strip("\0 \n") or None
    except OSError:
        return None


def tegra_release() -> str | None:
    """Returns the release of Linux for Tegra, such as ``L4T 36.4.3``, or None off Jetson."""
    try:
        text = _TEGRA_RELEASE.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"L4T {found[1]}.{found[2]}" if found else "L4T of unknown release"


def with_board(name: str) -> str:
    """Returns a GPU's name, on a Jetson with its board's: all Orins are just ``Orin``."""
    board = board_name()
    return name if board is None else f"{name} of {board}"


def cpu_name() -> str:
    """Returns the processor's model, such as ``AMD EPYC (x86_64)``, or the board that it is on."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else board_name() or platform.processor() or "CPU"
    return f"{name} ({platform.machine()})"
