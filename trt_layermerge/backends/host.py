"""What the host's processor calls itself."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_name() -> str:
    """Returns the processor's model, such as ``AMD EPYC (x86_64)``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or 'CPU'} ({platform.machine()})"
