"""``doctor`` on machines that exist only here: files in a folder, and scripted commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from trt_layermerge.doctor import Finding, Host, examine
from trt_layermerge.doctor.gpu import BINDINGS_CODE
from trt_layermerge.doctor.libraries import LIBRARIES
from trt_layermerge.measure.agent.sources import Answer

NOT_THERE = Answer(None, errors="no such command")
GIB_IN_KB = 2**20

TORCH = '{"version": "2.4.0", "cuda": null, "gpu": null}'
RUNTIME = '{"version": "1.18", "by": ["CPUExecutionProvider"]}'


def host(
    root: Path,
    files: Mapping[str, str] | None = None,
    commands: Mapping[str, Answer] | None = None,
    libraries: Mapping[str, Answer] | None = None,
    python: str = "3.11.2",
    free_bytes: int | None = 100 * 2**30,
) -> Host:
    """Returns a machine: commands answer by name, libraries by the module they ask for."""
    for name, text in (files or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    codes = {library.code: library.topic for library in LIBRARIES} | {BINDINGS_CODE: "cuda"}

    def ask(command: Sequence[str]) -> Answer:
        if command[0] == "python":
            topic = codes[command[2]]
            absent = Answer(1, errors=f"Traceback\nModuleNotFoundError: No module named {topic!r}")
            return (libraries or {}).get(topic, absent)
        return (commands or {}).get(command[0], NOT_THERE)

    return Host(root, ask, ("python", python), free_bytes, "aarch64")


def found(machine: Host) -> dict[str, Finding]:
    return {finding.topic: finding for finding in examine(machine)}


CPU_ONLY = {"torch": Answer(0, TORCH), "onnxruntime": Answer(0, f"a warning\n{RUNTIME}")}

MISSING = "the package is not installed; type: pip install x"
WORKS = Answer(0, json.dumps({"cuda-python": None, "pycuda": MISSING, "ctypes": None}))
FAILS = Answer(0, json.dumps({"cuda-python": MISSING, "ctypes": "no libcudart; install CUDA"}))

X86 = {
    "proc/meminfo": f"MemTotal: {16 * GIB_IN_KB} kB\nMemAvailable: {12 * GIB_IN_KB} kB\n",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: A CPU\nprocessor\t: 1\nmodel name\t: A CPU\n",
    "proc/self/status": "Name: x\nCpus_allowed_list:\t0-1\n",
    "proc/swaps": "Filename Type Size Used Priority\n",
}

ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, EABI: aarch64",
    "proc/meminfo": f"MemTotal: {7 * GIB_IN_KB} kB\nMemAvailable: {GIB_IN_KB} kB\n",
    "proc/cpuinfo": "processor\t: 0\nprocessor\t: 1\n",
    "proc/swaps": f"Filename Type Size Used Priority\n/dev/zram0 partition {GIB_IN_KB} 0 5\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "624750000\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "schedutil\n",
}


def test_an_empty_machine_is_described_and_told_what_to_type(tmp_path: Path) -> None:
    result = found(host(tmp_path, free_bytes=None))
    assert result["python"].state == "ok"
    assert result["torch"] == Finding("torch", "missing", "not installed", "pip install torch")
    assert result["gpu"].state == "none"
    assert result["jetson"].state == "none"
    assert result["memory"].state == "warning"
    assert result["can"] == Finding(
        "can", "missing", "nothing yet", "pip install 'trt-layermerge[onnxruntime]'"
    )


def test_a_machine_without_a_gpu_can_train_and_measure(tmp_path: Path) -> None:
    result = found(host(tmp_path, X86, libraries=CPU_ONLY))
    assert result["torch"].found == "2.4.0, computes on the CPU"
    assert result["onnxruntime"].found == "1.18, CPUExecutionProvider"
    assert result["processor"].found == "A CPU, 2 cores (0-1 usable), clock not governed here"
    assert result["memory"] == Finding("memory", "ok", "12.0 of 16.0 GiB free")
    assert result["can"] == Finding("can", "ok", "train and merge, measure on the CPU")
    assert "power mode" not in result


def test_a_machine_with_a_gpu_can_build_and_measure_engines(tmp_path: Path) -> None:
    libraries = {**CPU_ONLY, "tensorrt": Answer(0, '{"version": "10.3"}'), "cuda": WORKS}
    smi = Answer(0, "NVIDIA A100, 550.1, 40960, 210, 1410, 8.0")
    result = found(host(tmp_path, X86, {"nvidia-smi": smi}, libraries))
    assert result["gpu"] == Finding(
        "gpu",
        "ok",
        "NVIDIA A100, driver 550.1, 40960 MiB, 210 of 1410 MHz, compute capability 8.0",
    )
    assert result["clocks"].remedy == "sudo nvidia-smi -lgc 1410,1410"
    assert result["cuda"] == Finding(
        "cuda", "ok", "cuda-python: used; pycuda: the package is not installed; ctypes: works"
    )
    assert result["engines"].found.startswith("what tensorrt 10.3 builds here loads with that")
    assert "build and measure TensorRT engines" in result["can"].found


def test_power_of_a_discrete_gpu_is_what_nvidia_smi_says(tmp_path: Path) -> None:
    machine = host(tmp_path, X86)

    def ask(command: Sequence[str]) -> Answer:
        if "--query-gpu=clocks.gr" in " ".join(command):
            return Answer(0, "210, 1410, 40, 55.25, 0x0")
        listed = Answer(0, "NVIDIA A100, 550.1, 40960, 210, 1410, 8.0")
        return listed if command[0] == "nvidia-smi" else machine.ask(command)

    with_gpu = Host(machine.root, ask, machine.python, machine.free_bytes, machine.machine)
    assert found(with_gpu)["power"].found.startswith("55.2 W now (nvidia-smi: the board)")
    assert "power" not in found(machine)


def test_a_gpu_that_python_cannot_reach_measures_nothing(tmp_path: Path) -> None:
    libraries = {**CPU_ONLY, "tensorrt": Answer(0, '{"version": "10.3"}'), "cuda": FAILS}
    smi = Answer(0, "NVIDIA A100, 550.1, 40960, 210, 1410, 8.0")
    result = found(host(tmp_path, X86, {"nvidia-smi": smi}, libraries))
    assert result["cuda"] == Finding(
        "cuda",
        "missing",
        "cuda-python: the package is not installed; ctypes: no libcudart",
        "pip install 'trt-layermerge[cuda]'",
    )
    assert "TensorRT engines" not in result["can"].found


@pytest.mark.parametrize("answer", [Answer(-11), Answer(1, errors="ImportError: x"), Answer(0)])
def test_bindings_that_end_the_process_are_told(tmp_path: Path, answer: Answer) -> None:
    result = found(host(tmp_path, libraries={"cuda": answer}))["cuda"]
    assert result.state == "missing" and "cannot be asked" in result.found


def test_without_a_gpu_no_binding_is_missed(tmp_path: Path) -> None:
    assert found(host(tmp_path, X86, libraries={"cuda": FAILS}))["cuda"].state == "none"


def test_an_old_driver_is_asked_without_the_compute_capability(tmp_path: Path) -> None:
    machine = host(tmp_path, X86)

    def ask(command: Sequence[str]) -> Answer:
        if command[0] != "nvidia-smi":
            return machine.ask(command)
        old = "compute_cap" in command[1]
        return Answer(2, "not a valid field") if old else Answer(0, "GPU, 440.1, 8000, 300, 1500")

    old = Host(machine.root, ask, machine.python, machine.free_bytes, machine.machine)
    assert found(old)["gpu"].found == "GPU, driver 440.1, 8000 MiB, 300 of 1500 MHz"


def test_a_driver_that_does_not_answer_is_a_fault(tmp_path: Path) -> None:
    files = {**X86, "proc/driver/nvidia/version": "NVRM version: 550"}
    assert found(host(tmp_path, files))["gpu"].state == "missing"


def test_a_jetson_out_of_the_box(tmp_path: Path) -> None:
    commands = {
        "nvpmodel": Answer(0, "NV Power Mode: 15W\n0"),
        "systemctl": Answer(0, "graphical.target"),
    }
    result = found(host(tmp_path, ORIN, commands, CPU_ONLY))
    assert result["jetson"].found == "NVIDIA Jetson Orin Nano Developer Kit"
    assert result["jetpack"].state == "ok"
    assert result["jetpack"].found == (
        "L4T 36.4.3, JetPack 6.1 or 6.2, which comes with TensorRT 10.3"
    )
    assert result["power mode"].found.startswith("15W;")
    assert result["clocks"] == Finding(
        "clocks", "warning", "GPU at 306 MHz of 306 to 625, not locked", "sudo jetson_clocks"
    )
    assert result["desktop"].remedy.startswith("sudo systemctl set-default multi-user.target")
    assert result["memory"].state == "warning"
    assert "sudo reboot" in result["memory"].remedy
    assert result["swap"].found.startswith("0.0 GiB on disk, 1.0 GiB zram")
    assert "zram takes what it compresses" in result["swap"].found
    assert result["power"].state == "warning" and "tegrastats" in result["power"].found
    assert result["dla"].state == "none" and "falls back" in result["dla"].found
    assert result["container"] == Finding("container", "none", "no")
    assert result["swap"].remedy.endswith("sudo swapon /swapfile")
    assert result["processor"].remedy == "sudo cpupower frequency-set -g performance"
    assert result["tensorrt_rtx"].state == "none"
    assert "python3-libnvinfer" in result["tensorrt"].remedy


def test_a_jetson_ready_to_measure_has_nothing_to_remedy_there(tmp_path: Path) -> None:
    files = {
        **ORIN,
        "proc/meminfo": f"MemTotal: {30 * GIB_IN_KB} kB\nMemAvailable: {20 * GIB_IN_KB} kB\n",
        "sys/class/devfreq/17000000.gpu/min_freq": "624750000\n",
        "sys/class/devfreq/17000000.gpu/cur_freq": "624750000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance\n",
        "sys/class/hwmon/hwmon1/name": "ina3221\n",
        "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
        "sys/class/hwmon/hwmon1/in1_input": "5000\n",
        "sys/class/hwmon/hwmon1/curr1_input": "1000\n",
    }
    commands = {
        "nvpmodel": Answer(0, "NV Power Mode: MAXN\n0"),
        "systemctl": Answer(0, "multi-user.target"),
    }
    result = found(host(tmp_path, files, commands, CPU_ONLY))
    assert result["power"].found.startswith("5.0 W now (INA power monitor: VDD_IN)")
    topics = (
        "jetpack",
        "power mode",
        "power",
        "clocks",
        "desktop",
        "processor",
        "memory",
        "swap",
        "disk",
    )
    assert {topic: result[topic].state for topic in topics} == dict.fromkeys(topics, "ok")


def test_a_jetson_that_tells_nothing_is_not_an_error(tmp_path: Path) -> None:
    result = found(host(tmp_path, {"etc/nv_tegra_release": "gibberish"}))
    for topic in ("jetpack", "power mode", "clocks"):
        assert result[topic].state == "warning"
        assert result[topic].remedy


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer(1, errors="Traceback\nImportError: libnvinfer.so.10: cannot open"), "libnvinfer"),
        (Answer(-11), "it ended without a word"),
        (Answer(0, "no json"), "answers strangely"),
        (Answer(0, ""), "answers strangely"),
        (Answer(0, '{"name": "x"}'), "answers strangely"),
        (Answer(None, errors="timed out after 60 seconds"), "timed out"),
    ],
)
def test_a_broken_library_is_told_from_a_missing_one(
    tmp_path: Path, answer: Answer, text: str
) -> None:
    finding = found(host(tmp_path, libraries={"tensorrt": answer}))["tensorrt"]
    assert finding.state == "missing"
    assert text in finding.found
    assert finding.remedy


def test_an_old_python_and_a_full_disk_are_said(tmp_path: Path) -> None:
    result = found(host(tmp_path, python="3.9.1", free_bytes=2**30))
    assert result["python"].state == "missing"
    assert result["disk"] == Finding(
        "disk", "warning", "only 1.0 GiB free", "choose --runs-dir on another disk"
    )


def test_this_machine_answers(tmp_path: Path) -> None:
    machine = Host.local(tmp_path / "not" / "there")
    assert machine.python[0] == sys.executable
    assert machine.free_bytes is not None and machine.free_bytes > 0
    assert machine.read("no/such/file") is None
    assert machine.ask((sys.executable, "-c", "print(1)")) == Answer(0, "1")
    assert machine.ask(("no-such-command-anywhere",)).code is None


@pytest.mark.parametrize(
    ("release", "version", "state"),
    [
        ("R36 (release), REVISION: 4.3", "10.3.0", "ok"),
        ("R36 (release), REVISION: 4.3", "10.13.0", "warning"),
        ("R36 (release), REVISION: 3.0", "8.6.2", "ok"),
        ("R35 (release), REVISION: 4.1", "8.5.2", "ok"),
        ("R38 (release), REVISION: 2.0", "10.13.3", "ok"),
        ("R39 (release), REVISION: 2", "10.3.0", "warning"),
        ("R99 (release), REVISION: 1", "12.0", "ok"),
    ],
)
def test_tensorrt_is_held_against_the_one_of_jetpack(
    tmp_path: Path, release: str, version: str, state: str
) -> None:
    files = {**ORIN, "etc/nv_tegra_release": f"# {release}, GCID: 1"}
    libraries = {"tensorrt": Answer(0, json.dumps({"version": version}))}
    finding = found(host(tmp_path, files, libraries=libraries))["jetpack"]
    assert finding.state == state
    assert ("python3-libnvinfer" in finding.remedy) == (state == "warning")


def test_a_container_is_told_what_it_lacks(tmp_path: Path) -> None:
    inside = {".dockerenv": ""}
    assert found(host(tmp_path / "x86", {**X86, **inside}))["container"].remedy == (
        "docker run --gpus all IMAGE"
    )
    without = found(host(tmp_path / "orin", {**ORIN, **inside}))["container"]
    assert without.state == "warning" and "/usr/bin/tegrastats" in without.remedy
    commands = {"nvpmodel": Answer(0, "NV Power Mode: 25W\n1")}
    mounted = found(host(tmp_path / "with", {**ORIN, **inside}, commands))["container"]
    assert mounted.state == "ok"
    groups = {"proc/1/cgroup": "0::/kubepods/burstable/pod1"}
    assert found(host(tmp_path / "pod", {**X86, **groups}))["container"].state == "ok"
