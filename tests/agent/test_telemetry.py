"""Telemetry, from trees and answers written by hand.

No device was at hand. The trees follow NVIDIA's developer guides for L4T 35 and 36 and the kernel's
``hwmon`` documentation; the answers follow ``nvidia-smi --help-query-gpu``, ``nvpmodel -q`` and the
lines of ``tegrastats`` that users publish.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.measure.agent.facts import read_facts
from trt_layermerge.measure.agent.jetson import hwmon_rails, power_w, tegrastats_rails
from trt_layermerge.measure.agent.sources import LOCAL, Answer, Sources, ask
from trt_layermerge.measure.agent.telemetry import DeviceState, gpu_clock, power_mode, read_state
from trt_layermerge.measure.energy import PowerSampler

NOT_THERE = Answer(None, errors="No such file or directory")

AGX_ORIN_JETPACK_5 = {
    "proc/device-tree/model": "Jetson AGX Orin Developer Kit\0",
    "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref",
    "sys/class/devfreq/17000000.ga10b/cur_freq": "1300500000\n",
    "sys/class/devfreq/17000000.ga10b/min_freq": "1300500000\n",
    "sys/class/devfreq/17000000.ga10b/max_freq": "1300500000\n",
    "sys/class/thermal/thermal_zone0/type": "CPU-therm\n",
    "sys/class/thermal/thermal_zone0/temp": "47500\n",
    "sys/class/thermal/thermal_zone1/type": "GPU-therm\n",
    "sys/class/thermal/thermal_zone1/temp": "44281\n",
    "sys/class/thermal/cooling_device7/type": "gpu-throttle-alert\n",
    "sys/class/thermal/cooling_device7/cur_state": "0\n",
    "sys/class/thermal/cooling_device8/type": "cpu-throttle-alert\n",
    "sys/class/thermal/cooling_device8/cur_state": "1\n",
    "sys/class/hwmon/hwmon3/name": "ina3221\n",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_GPU_SOC\n",
    "sys/class/hwmon/hwmon3/in1_input": "19000\n",
    "sys/class/hwmon/hwmon3/curr1_input": "200\n",
    "sys/class/hwmon/hwmon3/in2_label": "VDD_CPU_CV\n",
    "sys/class/hwmon/hwmon3/in2_input": "19000\n",
    "sys/class/hwmon/hwmon3/curr2_input": "40\n",
    "sys/class/hwmon/hwmon3/in3_label": "VIN_SYS_5V0\n",
    "sys/class/hwmon/hwmon3/in3_input": "5000\n",
    "sys/class/hwmon/hwmon3/curr3_input": "900\n",
    "sys/class/hwmon/hwmon3/in7_label": "sum of shunt voltages\n",
    "sys/class/hwmon/hwmon3/in7_input": "1\n",
    "sys/class/hwmon/hwmon4/name": "ina3221\n",
    "sys/class/hwmon/hwmon4/in2_label": "VDDQ_VDD2_1V8AO\n",
    "sys/class/hwmon/hwmon4/in2_input": "5000\n",
    "sys/class/hwmon/hwmon4/curr2_input": "100\n",
}

ORIN_NANO_JETPACK_6 = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, EABI: aarch64",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    # gpu-thermal cannot be read while the GPU is powered off: EAGAIN, here an empty file
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "",
    "sys/class/thermal/thermal_zone8/type": "tj-thermal\n",
    "sys/class/thermal/thermal_zone8/temp": "51062\n",
    "sys/class/thermal/cooling_device5/type": "gpu-throttle-alert\n",
    "sys/class/thermal/cooling_device5/cur_state": "0\n",
    "sys/class/hwmon/hwmon1/name": "ina3221\n",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon1/in1_input": "5056\n",
    "sys/class/hwmon/hwmon1/curr1_input": "1000\n",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/class/hwmon/hwmon1/in2_input": "5056\n",
    "sys/class/hwmon/hwmon1/curr2_input": "136\n",
    "sys/class/hwmon/hwmon2/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon2/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon2/oc3_event_cnt": "12\n",
}

TEGRASTATS = (
    "11-21-2025 08:49:48 RAM 3458/7620MB (lfb 5x4MB) SWAP 0/3810MB (cached 0MB) "
    "CPU [3%@729,0%@729] GR3D_FREQ 0% cpu@48.9C soc2@47.7C gpu@48.2C tj@49.6C "
    "VDD_IN 4508mW/4498mW VDD_CPU_GPU_CV 553mW/553mW VDD_SOC 1386mW/1386mW"
)
NVPMODEL_25W = Answer(0, "NV Power Mode: 25W\n1")
THROTTLE = "clocks_throttle_reasons.active"


def machine(
    root: Path,
    files: Mapping[str, str] | None = None,
    commands: Mapping[str, Answer] | None = None,
) -> Sources:
    """Returns a machine of files, whose commands answer by name."""
    for name, text in (files or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)

    def ask(command: Sequence[str]) -> Answer:
        name = command[2] if command[0] == "timeout" else command[0]
        return (commands or {}).get(name, NOT_THERE)

    return Sources(root, ask)


def ina238(**more: str) -> dict[str, str]:
    """The monitor of a Thor's supply, 12 W, as its driver shows it: power in µW, and no label."""
    files = {"name": "ina238", "power1_input": "12000000", "in1_input": "12000", **more}
    return {f"sys/class/hwmon/hwmon5/{name}": f"{text}\n" for name, text in files.items()}


def test_an_ina238_is_read_by_its_own_label(tmp_path: Path) -> None:
    reading = power_w(machine(tmp_path, ina238(label="VIN")))
    assert reading.value == (12.0, "INA power monitor: VIN")


def test_an_ina238_without_a_label_is_reported_and_tegrastats_asked(tmp_path: Path) -> None:
    silent = power_w(machine(tmp_path, ina238()))
    assert silent.value is None
    assert "['ina238 without a label, hwmon5 channel 1']" in silent.reason
    assert "tegrastats" in silent.reason
    asked = {"tegrastats": Answer(0, TEGRASTATS)}
    assert power_w(machine(tmp_path, ina238(), asked)).value == (4.508, "tegrastats: VDD_IN")


def test_channels_without_a_label_leave_the_others_as_they_are(tmp_path: Path) -> None:
    more = {
        "sys/class/hwmon/hwmon3/in4_input": "1000\n",
        "sys/class/hwmon/hwmon3/curr4_input": "1000\n",
        "sys/class/hwmon/hwmon3/label": "SUPPLY\n",
    }
    orin = machine(tmp_path, {**AGX_ORIN_JETPACK_5, **more})
    assert hwmon_rails(orin)["ina3221 without a label, hwmon3 channel 4"] == 1.0
    assert power_w(orin).value == (
        pytest.approx(19 * 0.2 + 19 * 0.04 + 5 * 0.9),
        "INA power monitor: VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0",
    )


def test_an_agx_orin_of_jetpack_5(tmp_path: Path) -> None:
    orin = machine(tmp_path, AGX_ORIN_JETPACK_5, {"nvpmodel": Answer(0, "NV Power Mode: MAXN\n0")})
    assert read_state(orin) == DeviceState(
        gpu_clock_mhz=1300.5,
        temperature_c=44.281,
        power_w=pytest.approx(19 * 0.2 + 19 * 0.04 + 5 * 0.9),  # memory hangs on the 5 V rail
        power_mode="MAXN",
        throttled=True,  # the processor's alert
        throttle_events=None,
        missing={"throttle_events": "no readable over-current counter below /sys/class/hwmon"},
    )
    clock = gpu_clock(orin).value
    assert clock is not None
    assert clock.locked
    assert str(clock) == "1300 MHz of 1300 to 1300, locked"
    assert hwmon_rails(orin)["VDDQ_VDD2_1V8AO"] == 0.5


def test_an_orin_nano_of_jetpack_6(tmp_path: Path) -> None:
    orin = machine(tmp_path, ORIN_NANO_JETPACK_6, {"nvpmodel": NVPMODEL_25W})
    assert read_state(orin) == DeviceState(
        gpu_clock_mhz=306.0,
        temperature_c=51.062,
        power_w=5.056,
        power_mode="25W",
        throttled=False,
        throttle_events=12,
        missing={},
    )
    assert str(gpu_clock(orin).value) == "306 MHz of 306 to 1020, not locked"
    facts = read_facts(DeviceInfo("fake", "1", "x"), orin)
    assert (facts["jetpack"], facts["power_mode"]) == ("L4T 36.4.3", "25W")
    assert facts["gpu_clock_range_mhz"] == [306.0, 1020.0]
    assert set(facts["missing"]) == {"tensorrt", "cuda"}


def test_a_jetson_that_tells_nothing_says_why(tmp_path: Path) -> None:
    files = {"etc/nv_tegra_release": "of an unknown form"}
    refused = Answer(1, "NVPM ERROR: Error opening /var/lib/nvpmodel/status: 13")
    state = read_state(machine(tmp_path, files, {"nvpmodel": refused}))
    assert state == DeviceState(missing=state.missing)
    assert state.missing == {
        "gpu_clock_mhz": "no readable GPU below /sys/class/devfreq",
        "temperature_c": "no readable thermal zone of the GPU among []",
        "power_w": "no INA power monitor can be read; tegrastats: No such file or directory",
        "power_mode": f"nvpmodel -q does not tell: {refused.output}",
        "throttled": "no readable throttle alert below /sys/class/thermal",
        "throttle_events": "no readable over-current counter below /sys/class/hwmon",
    }
    assert set(state.to_json()) >= {"power_w", "missing"}


def test_where_hwmon_is_closed_tegrastats_is_asked(tmp_path: Path) -> None:
    files = {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3"}
    stats = {"tegrastats": Answer(124, f"{TEGRASTATS}\n{TEGRASTATS}")}
    assert read_state(machine(tmp_path, files, stats)).power_w == 4.508
    assert tegrastats_rails(TEGRASTATS) == {
        "VDD_IN": 4.508,
        "VDD_CPU_GPU_CV": 0.553,
        "VDD_SOC": 1.386,
    }
    assert tegrastats_rails("RAM 1/2MB cpu@48.9C") == {}


def test_rails_that_are_not_known_are_not_added_up(tmp_path: Path) -> None:
    files = {
        "etc/nv_tegra_release": "# R40 (release), REVISION: 1.0",
        "sys/class/hwmon/hwmon0/name": "ina238\n",
        "sys/class/hwmon/hwmon0/in1_label": "NEW_RAIL\n",
        "sys/class/hwmon/hwmon0/power1_input": "2500000\n",
    }
    unknown = machine(tmp_path, files)
    assert hwmon_rails(unknown) == {"NEW_RAIL": 2.5}  # µW, where the driver has them
    reason = read_state(unknown).missing["power_w"]
    known = "which rails make up the module is not known for ['NEW_RAIL']"
    assert reason == f"{known}; tegrastats: No such file or directory"


def test_a_discrete_gpu(tmp_path: Path) -> None:
    answer = Answer(0, "1410, 1980, 41, 132.45, 0x0000000000000000")
    state = read_state(machine(tmp_path, None, {"nvidia-smi": answer}))
    assert state == DeviceState(
        gpu_clock_mhz=1410,
        temperature_c=41,
        power_w=132.45,
        throttled=False,
        missing={
            "power_mode": "not a Jetson: there are no power modes",
            "throttle_events": "only a Jetson counts them",
        },
    )
    clock = gpu_clock(machine(tmp_path, None, {"nvidia-smi": answer})).value
    assert str(clock) == "1410 MHz, not known whether locked"
    assert power_mode(machine(tmp_path)).value is None


@pytest.mark.parametrize(
    ("bits", "throttled"),
    [
        ("0x0000000000000001", False),  # idle
        ("0x0000000000000002", False),  # the clocks that were asked for
        ("0x0000000000000004", True),  # power cap
        ("0x0000000000000008", True),  # hardware slowdown
        ("0x0000000000000020", True),  # temperature, by software
        ("0x0000000000000040", True),  # temperature, by hardware
        ("0x0000000000000080", True),  # power brake
        ("0x0000000000000021", True),
    ],
)
def test_the_reasons_of_nvidia_smi(tmp_path: Path, bits: str, throttled: bool) -> None:
    answer = Answer(0, f"1410, 1980, 41, 132.45, {bits}")
    assert read_state(machine(tmp_path, None, {"nvidia-smi": answer})).throttled is throttled


def test_a_field_that_the_gpu_does_not_have_is_told(tmp_path: Path) -> None:
    answer = Answer(0, "1410, 1980, 41, [N/A], [Not Supported]")
    state = read_state(machine(tmp_path, None, {"nvidia-smi": answer}))
    assert (state.power_w, state.throttled, state.temperature_c) == (None, None, 41)
    assert state.missing["power_w"] == "nvidia-smi says power.draw = [N/A]"
    assert state.missing["throttled"] == f"nvidia-smi says {THROTTLE} = [Not Supported]"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(9, "NVIDIA-SMI has failed because it couldn't communicate"), "NVIDIA-SMI has"),
        (Answer(0, "1, 2, 3, 4, 0x0\n1, 2, 3, 4, 0x0"), "2 GPUs: set CUDA_VISIBLE_DEVICES"),
        (Answer(0, "1, 2"), "nvidia-smi answered in an unknown form: 1, 2"),
        (Answer(0, ""), "0 GPUs"),
    ],
)
def test_a_gpu_that_does_not_tell(tmp_path: Path, answer: Answer, reason: str) -> None:
    state = read_state(machine(tmp_path, None, {"nvidia-smi": answer}))
    assert state == DeviceState(missing=state.missing)
    assert all(reason in state.missing[f] for f in ("gpu_clock_mhz", "power_w", "throttled"))


def test_one_gpu_is_chosen_by_its_uuid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []

    def ask(command: Sequence[str]) -> Answer:
        asked.append(command)
        return Answer(0, "1, 2, 3, 4, 0x0")

    for visible, chosen in (("GPU-12ab,GPU-34cd", ("-i", "GPU-12ab")), ("1", ()), ("", ())):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        read_state(Sources(tmp_path, ask))
        assert tuple(asked[-1][1:-2]) == chosen


def test_a_driver_that_renamed_the_reasons_is_asked_again(tmp_path: Path) -> None:
    def ask(command: Sequence[str]) -> Answer:
        if any(THROTTLE in word for word in command):
            return Answer(2, f'Field "{THROTTLE}" is not a valid field to query.')
        assert any("clocks_event_reasons.active" in word for word in command)
        return Answer(0, "1410, 1980, 41, 132.45, 0x0000000000000004")

    assert read_state(Sources(tmp_path, ask)).throttled is True


def test_power_above_idle(tmp_path: Path) -> None:
    orin = machine(tmp_path, ORIN_NANO_JETPACK_6)
    current = tmp_path / "sys/class/hwmon/hwmon1/curr1_input"
    with PowerSampler(orin, idle_seconds=0.05, interval_seconds=0.01) as power:
        current.write_text("3000\n")
        time.sleep(0.3)
    assert power.idle_watts == pytest.approx(5.056)
    assert power.mean_watts is not None
    assert 12 < power.mean_watts <= 15.168 + 1e-9  # the first reading may still be of idle
    assert power.reason == ""
    seen = power.mean_watts
    current.write_text("90000\n")
    time.sleep(0.05)
    assert power.mean_watts == seen


def test_power_that_cannot_be_read_has_a_reason_and_costs_nothing(tmp_path: Path) -> None:
    started = time.monotonic()
    with PowerSampler(machine(tmp_path), idle_seconds=5) as power:
        pass
    assert time.monotonic() - started < 1
    assert (power.idle_watts, power.mean_watts) == (None, None)
    assert power.reason == "nvidia-smi does not tell: No such file or directory"


def test_commands_are_bounded_in_time() -> None:
    started = time.monotonic()
    answer = ask((sys.executable, "-c", "import time; time.sleep(60)"), 0.2)
    assert time.monotonic() - started < 10
    assert answer.code is None
    assert "did not answer in 0.2 s" in answer.errors
    assert LOCAL.ask(("no-such-command-here",)).code is None
    said = ask((sys.executable, "-c", "print('yes'); raise SystemExit(3)"), 20)
    assert (said.code, said.output, said.worked) == (3, "yes", False)


def test_files_are_bounded_in_size(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * (2 << 20))
    text = machine(tmp_path).read("large")
    assert text is not None
    assert len(text) == 1 << 20


def test_this_machine_answers_something() -> None:
    state = read_state()
    assert all(name in state.missing or value is not None for name, value in vars(state).items())
