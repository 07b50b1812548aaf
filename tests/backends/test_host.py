"""What tells one machine from another where names alone do not."""

from __future__ import annotations

import platform
from pathlib import Path
from types import SimpleNamespace

import pytest

from trt_layermerge.backends import cuda, host, tensorrt
from trt_layermerge.backends.host import board_name, cpu_name
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.deploy.machine import this_machine

NANO = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
AGX = "NVIDIA Jetson AGX Orin Developer Kit"


@pytest.fixture
def stand_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts the test on a machine by what it says of its board and its processor."""

    def put(board: str | None, cpuinfo: str = "") -> None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        (tmp_path / "model").unlink(missing_ok=True)
        if board is not None:
            (tmp_path / "model").write_bytes(board.encode() + b"\0")
        monkeypatch.setattr(host, "_BOARD", tmp_path / "model")
        monkeypatch.setattr(host, "_CPUINFO", tmp_path / "cpuinfo")

    return put


def test_a_processor_is_its_model_or_the_board(stand_on) -> None:
    stand_on(NANO, "processor\t: 0\nmodel name\t: AMD EPYC\n")
    assert cpu_name() == f"AMD EPYC ({platform.machine()})"
    stand_on(NANO, "processor\t: 0\nBogoMIPS\t: 62.50\n")  # an Arm kernel tells no model
    assert cpu_name() == f"{NANO} ({platform.machine()})"
    stand_on(None)
    assert board_name() is None
    assert cpu_name() == f"{platform.processor() or 'CPU'} ({platform.machine()})"


def orin() -> SimpleNamespace:
    """Returns the GPU of any Orin, as CUDA tells of it."""
    return SimpleNamespace(
        device_name=lambda: "Orin", compute_capability=lambda: "8.7", version=lambda: "12.6"
    )


def test_two_orins_are_two_devices(stand_on, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA calls all of them Orin, of compute capability 8.7."""
    monkeypatch.setattr(tensorrt, "find_cuda", orin)
    monkeypatch.setattr("trt_layermerge.deploy.machine.find_cuda", orin)
    api = SimpleNamespace(flavor="tensorrt", version="10.3.0")
    monkeypatch.setattr(tensorrt, "load_api", lambda flavor: api)
    found: list[DeviceInfo] = []
    machines: list[str] = []
    for board in (NANO, AGX):
        stand_on(board)
        found.append(tensorrt.TensorRTBackend().device())
        machines.append(this_machine().folder)
    assert [device.name for device in found] == [f"Orin of {NANO}", f"Orin of {AGX}"]
    assert machines[1] == "orin-of-nvidia-jetson-agx-orin-developer-kit" != machines[0]
    stand_on(None)
    assert cuda.gpu_name(orin()) == "Orin"  # type: ignore[arg-type]
