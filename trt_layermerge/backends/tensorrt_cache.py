"""Measured kernels kept between builds: one file per library version and GPU.

Kernels are timed once and not again for every candidate, and layers that are alike in two engines
get the same kernel. TensorRT checks that a cache is its own; what it does not take is started
anew. Several processes may share a file: it is replaced whole, and what another one added since it
was read is taken in first. Run on fakes only: TensorRT-RTX times nothing when it builds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trt_layermerge.backends.tensorrt_api import TensorRTApi
from trt_layermerge.backends.tensorrt_site import BuildSite
from trt_layermerge.core.jsonio import write_bytes
from trt_layermerge.errors import DeviceError

if TYPE_CHECKING:
    import tensorrt as trt


class TimingCache:
    """The timing cache of one build; ``words`` say what became of it, for the record."""

    def __init__(self, api: TensorRTApi, folder: Path | None, site: BuildSite) -> None:
        """Takes the library, the folder of caches or None, and where the build runs."""
        self._path: Path | None = None
        self._known = b""
        if folder is None:
            self.words = "not used"
        elif api.flavor == "tensorrt_rtx":
            self.words = "not used: TensorRT-RTX times nothing when it builds"
        elif site.gpu is None:
            self.words = "not used: there is no GPU to time on"
        else:
            self._path = folder / f"{api.flavor}-{api.version}-{site.slug}.timing"
            self.words = "not saved"

    def load(self, config: trt.IBuilderConfig) -> None:
        """Gives the builder what earlier builds measured, or an empty cache to fill."""
        if self._path is None:
            return
        self._known = _read(self._path)
        for data in (self._known, b""):
            cache = config.create_timing_cache(data)
            if cache is not None and config.set_timing_cache(cache, False):
                return
        self._path = None
        self.words = "not used: the library refused an empty cache"

    def save(self, config: trt.IBuilderConfig) -> None:
        """Writes what this build measured, together with what others added meanwhile.

        A folder that cannot be written costs the next build its time, and this one nothing.
        """
        if self._path is None:
            return
        cache = config.get_timing_cache()
        others = _read(self._path)
        if others not in (b"", self._known):
            theirs = config.create_timing_cache(others)
            if theirs is not None:
                cache.combine(theirs, False)
        data = bytes(cache.serialize())
        try:
            write_bytes(self._path, data)
        except DeviceError as error:
            self.words = f"not saved: {error}"
        else:
            self.words = f"{self._path.name}, {len(self._known)} bytes before, {len(data)} after"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
