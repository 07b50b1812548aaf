"""Whether latencies compare: by what they are counted, and what the machine was like."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.measure.agent.sources import Answer, Reading, Sources
from trt_layermerge.measure.agent.telemetry import DeviceState, GpuClock
from trt_layermerge.measure.conditions import (
    Conditions,
    Watch,
    clock_of,
    not_comparable,
)

GPU = DeviceInfo("tensorrt", "10.3", "Orin", "compute capability 8.7")
TORCH_GPU = DeviceInfo("torch", "2.4", "A100", "eager, cuDNN autotuned, no TF32")
TORCH_CPU = DeviceInfo("torch", "2.4", "A CPU", "eager, 1 thread")
CORE = DeviceInfo("onnxruntime", "1.18", "A CPU", "1 thread, pinned to one core, time on core")
WALL = DeviceInfo("onnxruntime", "1.18", "A CPU", "1 thread, pinned to one core, wall clock")
UNTOLD = Reading(GpuClock(1410.0, None, None))


def clock(low: float, high: float) -> Reading[GpuClock]:
    return Reading(GpuClock(low, (low, high), low == high))


def at(mhz: float | None, **others: object) -> DeviceState:
    return DeviceState(gpu_clock_mhz=mhz, **others)  # type: ignore[arg-type]


def test_every_backend_counts_by_its_own_clock() -> None:
    fake = DeviceInfo("fake", "1", "fake device", "no clock")
    devices = (GPU, TORCH_GPU, TORCH_CPU, CORE, WALL, fake)
    assert [clock_of(d) for d in devices] == ["gpu", "gpu", "wall", "core", "wall", "core"]


def test_a_locked_clock_compares_and_a_free_one_is_marked() -> None:
    assert not_comparable(GPU, Conditions(clock=clock(624, 624))) == ()
    (reason,) = not_comparable(GPU, Conditions(clock=clock(306, 624)))
    assert "306 MHz of 306 to 624, not locked" in reason and "sudo jetson_clocks" in reason


@pytest.mark.parametrize(("after", "moved"), [(1410.0, False), (1420.0, False), (1440.0, True)])
def test_where_limits_are_not_told_the_clock_itself_tells(after: float, moved: bool) -> None:
    found = not_comparable(GPU, Conditions(at(1410.0), at(after), UNTOLD))
    assert bool(found) == moved
    if moved:
        assert "from 1410 to 1440 MHz" in found[0] and "nvidia-smi -lgc" in found[0]


def test_a_clock_that_nobody_can_read_is_not_taken_for_locked() -> None:
    (reason,) = not_comparable(GPU, Conditions(clock=Reading(None, "no nvidia-smi")))
    assert "cannot be read (no nvidia-smi)" in reason


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (at(900.0, throttled=True), at(900.0)),
        (at(900.0), at(900.0, throttled=True)),
        (at(900.0, throttle_events=3), at(900.0, throttle_events=4)),
    ],
)
def test_throttling_before_after_or_meanwhile_is_marked(
    before: DeviceState, after: DeviceState
) -> None:
    (reason,) = not_comparable(GPU, Conditions(before, after, clock(900, 900)))
    assert "throttled" in reason


def test_another_power_mode_is_marked() -> None:
    states = at(900.0, power_mode="15W"), at(900.0, power_mode="25W")
    (reason,) = not_comparable(GPU, Conditions(*states, clock(900, 900)))
    assert reason == "the power mode changed from 15W to 25W"


def test_a_busy_host_spoils_wall_clocks_only() -> None:
    busy, quiet = Conditions(others=1.5, cores=4), Conditions(others=0.9, cores=4)
    (reason,) = not_comparable(WALL, busy)
    assert "1.5 of 4 cores" in reason
    assert not_comparable(TORCH_CPU, busy)
    assert not_comparable(WALL, quiet) == ()
    assert not_comparable(CORE, busy) == ()
    assert not_comparable(WALL, Conditions(others=None, cores=4)) == ()


def test_conditions_are_json() -> None:
    body = json.loads(json.dumps(Conditions(clock=clock(306, 624)).to_json(), allow_nan=False))
    assert body["gpu_clock"] == "306 MHz of 306 to 624, not locked"
    assert json.loads(json.dumps(Conditions().to_json()))["gpu_clock"] == "unknown: not looked at"


def silent(_: object) -> Answer:
    return Answer(None, errors="no such command")


def test_others_are_what_the_host_was_busy_with_less_this_process(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    stat = tmp_path / "proc" / "stat"
    stat.write_text("cpu 100 0 0 1000 0 0 0 0 0 0\ncpu0 ...\n")
    watch = Watch(Sources(tmp_path, silent))
    time.sleep(0.2)
    assert watch.others() == 0.0  # the host stood still, and this process hardly worked
    stat.write_text("cpu 9100 900 0 1000 50 0 0 0 0 0\n")
    others = watch.others()
    assert others is not None
    # 9900 ticks of a hundredth of a second within a good fifth of a second, idle ones left out.
    assert 99 / 2.0 < others <= 99 / 0.2
    stat.write_text("gibberish")
    assert watch.others() is None


def test_a_watch_looks_before_and_after(tmp_path: Path) -> None:
    folder = tmp_path / "sys" / "class" / "devfreq" / "17000000.gpu"
    folder.mkdir(parents=True)
    model = tmp_path / "proc" / "device-tree" / "model"
    model.parent.mkdir(parents=True)
    model.write_text("NVIDIA Jetson Orin Nano")
    for name, mhz in (("min", 306), ("max", 624), ("cur", 306)):
        (folder / f"{name}_freq").write_text(str(mhz * 1_000_000))
    watch = Watch(Sources(tmp_path, silent))
    (folder / "cur_freq").write_text("624000000")
    found = watch.conditions()
    assert (found.before.gpu_clock_mhz, found.after.gpu_clock_mhz) == (306, 624)
    assert found.clock.value == GpuClock(624, (306, 624), False)
    assert found.governor is None
