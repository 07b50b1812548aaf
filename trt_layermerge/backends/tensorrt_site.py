"""What a build finds around it: the GPU, the memory that is free, and whether this is a Jetson."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from trt_layermerge.backends.cuda import find_cuda, gpu_name
from trt_layermerge.backends.host import tegra_release
from trt_layermerge.errors import DeviceError

_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class BuildSite:
    """The machine at the moment a build starts.

    Attributes:
        gpu: Name and compute capability of the GPU, or None where there is none.
        no_gpu: Why there is none, or None.
        free_bytes: Memory that is free, or None where nobody tells.
        memory: Which memory that is: ``GPU``, ``host``, or ``shared`` on a Jetson.
        jetson: Whether this is a Jetson, where CPU and GPU share their memory.
    """

    gpu: str | None = None
    no_gpu: str | None = None
    free_bytes: int | None = None
    memory: str = "host"
    jetson: bool = False

    @property
    def slug(self) -> str:
        """The GPU as part of a file name: ``orin-nvgpu-compute-capability-8-7``."""
        return re.sub(r"[^a-z0-9]+", "-", (self.gpu or "no gpu").lower()).strip("-")


def look_around() -> BuildSite:
    """Returns what is here now; memory is looked up anew each time.

    On a Jetson CUDA counts pages that the system merely caches files in as taken, although it gives
    them up when asked (CUDA for Tegra, on ``cudaMemGetInfo``); the kernel's own count is used where
    it is higher.
    """
    jetson = tegra_release() is not None
    try:
        cuda = find_cuda()
        gpu = f"{gpu_name(cuda)}, compute capability {cuda.compute_capability()}"
        free, memory = cuda.free_memory(), "GPU"
    except DeviceError as error:
        return BuildSite(None, str(error), host_memory(), "host", jetson)
    if jetson:
        free, memory = max(free, host_memory() or 0), "shared"
    return BuildSite(gpu, None, free, memory, jetson)


def host_memory() -> int | None:
    """Returns the bytes of main memory that a new program can have, or None off Linux."""
    try:
        text = _MEMINFO.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None
