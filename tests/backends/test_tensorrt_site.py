"""What a build finds around it, on machines made of two files and a fake GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from trt_layermerge.backends import host, tensorrt_site
from trt_layermerge.backends.tensorrt_site import BuildSite, host_memory, look_around
from trt_layermerge.errors import DeviceError

MEMINFO = "MemTotal: 8000000 kB\nMemFree: 300000 kB\nMemAvailable: 4000000 kB\nCached: 3900000 kB\n"
AVAILABLE = 4_000_000 * 1024
NAME = "Orin, compute capability 8.7"


def stand_on(
    monkeypatch: pytest.MonkeyPatch, folder: Path, free: int | None, *, jetson: bool
) -> None:
    """Puts the build on a machine; ``free`` is what CUDA says, None where there is no GPU."""
    (folder / "meminfo").write_text(MEMINFO)
    monkeypatch.setattr(tensorrt_site, "_MEMINFO", folder / "meminfo")
    monkeypatch.setattr(host, "_TEGRA_RELEASE", folder / "release")
    if jetson:
        (folder / "release").write_text("# R36 (release), REVISION: 4.3")

    def find_cuda() -> SimpleNamespace:
        if free is None:
            raise DeviceError("no driver")
        return SimpleNamespace(
            device_name=lambda: "Orin",
            compute_capability=lambda: "8.7",
            free_memory=lambda: free,
        )

    monkeypatch.setattr(tensorrt_site, "find_cuda", find_cuda)


@pytest.mark.parametrize(
    ("free", "jetson", "expected"),
    [
        (1 << 30, False, BuildSite(NAME, None, 1 << 30, "GPU", False)),
        (300 << 20, True, BuildSite(NAME, None, AVAILABLE, "shared", True)),  # files are cached
        (5 << 30, True, BuildSite(NAME, None, 5 << 30, "shared", True)),
        (None, False, BuildSite(None, "no driver", AVAILABLE, "host", False)),
        (None, True, BuildSite(None, "no driver", AVAILABLE, "host", True)),
    ],
)
def test_memory_is_that_which_a_build_can_have(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    free: int | None,
    jetson: bool,
    expected: BuildSite,
) -> None:
    stand_on(monkeypatch, tmp_path, free, jetson=jetson)
    assert look_around() == expected


def test_a_jetson_that_tells_no_memory_is_believed_its_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_on(monkeypatch, tmp_path, 7 << 20, jetson=True)
    (tmp_path / "meminfo").unlink()
    assert host_memory() is None
    assert look_around().free_bytes == 7 << 20


def test_the_name_of_a_file_for_a_gpu() -> None:
    assert BuildSite("Orin (nvgpu), compute capability 8.7").slug == (
        "orin-nvgpu-compute-capability-8-7"
    )
    assert BuildSite().slug == "no-gpu"
