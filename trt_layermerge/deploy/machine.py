"""The machine that an engine belongs to, and whether an engine belongs to this one.

An engine is compiled for one GPU and one version of TensorRT. Two options widen that. A
version-compatible engine goes forward only, within a major version and from 8 to 10 and 10 to 11; a
hardware-compatible one runs on every GPU of compute capability 8.0 or newer (both after NVIDIA's
documentation; never tried).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trt_layermerge.backends.cuda import find_cuda, gpu_name
from trt_layermerge.backends.host import tegra_release
from trt_layermerge.errors import DeviceError, command


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
    jetpack = tegra_release()
    if jetpack is None:
        missing["jetpack"] = "not a Jetson"
    if power_mode is None:
        missing["power_mode"] = "not recorded" if jetpack else "not a Jetson"
    return Machine(gpu, capability, cuda_version, jetpack, power_mode, missing)


FORWARD = {("8", "10"), ("10", "11")}
"""Major versions between which a version-compatible engine may move."""

COMPATIBLE_FROM = (8, 0)
"""Compute capability of Ampere, from which hardware-compatible engines run."""


def rebuild_command(plan: Path) -> str:
    """Returns what builds an engine again; names its run where the path tells."""
    folders = Path(os.path.realpath(plan)).parents  # ``resolve`` raises where links go in circles
    if len(folders) > 2 and folders[1].name == "engines":
        return command("build", folders[2])
    return "trt-layermerge build --run NAME"


def why_other_version(
    built: tuple[str, str], here: tuple[str, str], settings: Mapping[str, Any]
) -> str | None:
    """Returns why another library or version does not load an engine, or None where it does.

    Args:
        built: Library and version that built it.
        here: Library and version that would load it.
        settings: What the builder was given.
    """
    if built == here:
        return None
    forward = settings.get("version_compatible") and built[0] == here[0]
    if forward and _newer(built[1], here[1]):
        return None
    hint = "; it is version-compatible, which reaches newer versions only" if forward else ""
    return (
        f"an engine belongs to one version of TensorRT: this one was built with {' '.join(built)}, "
        f"and here is {' '.join(here)}{hint}"
    )


def why_other_gpu(built: Machine, here: Machine, settings: Mapping[str, Any]) -> str | None:
    """Returns why an engine does not run on this GPU, or None where it does.

    One that was built without a GPU is bound to none.

    Args:
        built: Where the engine was built.
        here: Where it would run.
        settings: What the builder was given.
    """
    if built.gpu is None or (built.gpu, built.compute_capability) == (
        here.gpu,
        here.compute_capability,
    ):
        return None
    if settings.get("hardware_compatible") and _capability(here) >= COMPATIBLE_FROM:
        return None
    return (
        f"an engine belongs to one kind of GPU: this one was built for {_words(built)}, and here "
        f"is {_words(here)}"
    )


def _newer(built: str, here: str) -> bool:
    majors = (built.partition(".")[0], here.partition(".")[0])
    return _numbers(here) >= _numbers(built) and (majors[0] == majors[1] or majors in FORWARD)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _capability(machine: Machine) -> tuple[int, ...]:
    return _numbers(machine.compute_capability or "")


def _words(machine: Machine) -> str:
    if machine.gpu is None:
        return "no GPU"
    if machine.compute_capability is None:
        return machine.gpu
    return f"{machine.gpu} (compute capability {machine.compute_capability})"
