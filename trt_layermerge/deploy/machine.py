"""The machine that an engine belongs to; what cannot be known is None, with the reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trt_layermerge.backends.cuda import find_cuda, gpu_name
from trt_layermerge.errors import DeviceError

_TEGRA_RELEASE = Path("/etc/nv_tegra_release")


@dataclass(frozen=True)
class Machine:
    """GPU, CUDA and Jetson release of one machine.

    Attributes:
        gpu: Name of the GPU, on a Jetson with its board's.
        compute_capability: Such as ``8.7``.
        cuda: Version of the CUDA runtime.
        jetpack: Release of Linux for Tegra, which tells JetPack; None off Jetson.
        power_mode: Name of the Jetson's power mode.
        missing: Reason for every field that is None.
    """

    gpu: str | None = None
    compute_capability: str | None = None
    cuda: str | None = None
    jetpack: str | None = None
    power_mode: str | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The machine's name as a folder below ``engines``: ``any`` where there is no GPU."""
        return re.sub(r"[^a-z0-9]+", "-", (self.gpu or "any").lower()).strip("-") or "any"


def this_machine(power_mode: str | None = None) -> Machine:
    """Returns this machine; the caller knows the power mode, if anybody does."""
    missing = {}
    gpu = capability = cuda_version = None
    try:
        cuda = find_cuda()
        gpu, capability = gpu_name(cuda), cuda.compute_capability()
        cuda_version = cuda.version()
    except DeviceError as error:
        missing = dict.fromkeys(("gpu", "compute_capability", "cuda"), str(error))
    jetpack = _tegra_release()
    if jetpack is None:
        missing["jetpack"] = "not a Jetson"
    if power_mode is None:
        missing["power_mode"] = "not recorded" if jetpack else "not a Jetson"
    return Machine(gpu, capability, cuda_version, jetpack, power_mode, missing)


def _tegra_release() -> str | None:
    """Returns the release of Linux for Tegra, such as ``L4T 36.4.3``, or None off Jetson."""
    try:
        text = _TEGRA_RELEASE.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"L4T {found[1]}.{found[2]}" if found else "L4T of unknown release"
