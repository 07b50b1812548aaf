"""How an engine is built, as plain data; what a version of the library lacks is refused later."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Tuple

from trt_layermerge.errors import UsageError

Shape = Tuple[int, ...]
Profile = Mapping[str, Tuple[Shape, Shape, Shape]]
"""Smallest, usual and largest shape by input name."""


@dataclass(frozen=True)
class BuildOptions:
    """What a builder is asked for. The precision is not here: it lies in the types of the graph.

    Attributes:
        workspace_bytes: Most memory that a layer may use while it runs; None for the library's
            own limit. Either is clamped to the memory that is free when the build starts.
        optimization_level: From 0, built quickly, to 5, runs quickly; None for the library's own.
        tf32: Whether float32 convolutions may round their factors to 10 bits of mantissa.
        timing_cache: Folder that holds a file of measured kernels for each version and GPU,
            shared by all builds that name it; None for no such memory.
        hardware_compatible: Whether the engine runs on every GPU from Ampere on, not only on this.
        version_compatible: Whether newer versions of the library load the engine.
        profile: Shapes of the inputs that have dynamic dimensions.
        free_io_formats: Whether inputs and outputs may lie in memory as is fastest, for timing:
            what the host copies in and out is then no plain array.
    """

    workspace_bytes: int | None = None
    optimization_level: int | None = None
    tf32: bool = False
    timing_cache: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    profile: Profile | None = None
    free_io_formats: bool = False

    def __post_init__(self) -> None:
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(
                f"there is no optimisation level {self.optimization_level}; choose 0 (built "
                "quickly) to 5 (runs quickly) for build.options.optimization_level"
            )
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            raise UsageError(
                f"a workspace of {self.workspace_bytes} bytes holds nothing; give more "
                "(build.options.workspace_mib), or leave it out"
            )


def default_timing_cache() -> Path:
    """Returns the user's own folder of timing caches, below ``$XDG_CACHE_HOME``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "trt-layermerge" / "timing"
