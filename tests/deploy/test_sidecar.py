"""An engine is loaded only with the sidecar it was written with."""

import errno
import json
import os
import random
from dataclasses import replace

import pytest

from trt_layermerge.backends.tensorrt import EngineBuild
from trt_layermerge.core.jsonio import sha256_bytes
from trt_layermerge.deploy.machine import Machine, this_machine
from trt_layermerge.deploy.sidecar import (
    Identity,
    Origin,
    Sidecar,
    amend_sidecar,
    check_engine,
    mismatch,
    read_engine,
    sidecar_path,
    write_engine,
)
from trt_layermerge.errors import DeviceError, LayerMergeError, UntrustedInputError, UsageError

ORIN = Machine("Orin (nvgpu)", "8.7", "12.6", "L4T 36.4.3", "25W")
PLAN = bytes(range(256)) * 20


@pytest.fixture
def build():
    return EngineBuild(
        plan=PLAN,
        seconds=1.5,
        library="tensorrt",
        version="10.3.0",
        log=("WARNING: x",),
        precision="fp16",
        inputs={"input": (1, 3, 32, 32)},
        outputs={"logits": (1, 36)},
        settings={"typing": "strong", "tf32": True},
    )


@pytest.fixture
def origin():
    return Origin("a" * 64, "b" * 64, {"scale": 1 / 255, "mean": [0.5], "std": [0.25]}, None, "", 7)


@pytest.fixture
def plan(tmp_path, build, origin):
    return write_engine(tmp_path / "engines", build, origin, ORIN)


def test_files_and_fields(plan, tmp_path):
    assert plan == tmp_path / "engines" / "orin-nvgpu" / "model.fp16.plan"
    assert sidecar_path(plan).name == "model.fp16.json"
    assert plan.read_bytes() == PLAN
    body = json.loads(sidecar_path(plan).read_text())
    assert body == {
        "schema": "trt-layermerge/engine@1",
        "plan_sha256": sha256_bytes(PLAN),
        "plan_bytes": len(PLAN),
        "network": "merged",
        "precision": "fp16",
        "library": "tensorrt",
        "library_version": "10.3.0",
        "settings": {"typing": "strong", "tf32": True},
        "build_seconds": 1.5,
        "inputs": {"input": [1, 3, 32, 32]},
        "outputs": {"logits": [1, 36]},
        "profile": {},
        "origin": {
            "onnx_sha256": "a" * 64,
            "weights_sha256": "b" * 64,
            "preprocess": {"scale": 1 / 255, "mean": [0.5], "std": [0.25]},
            "labels": None,
            "recipe": "",
            "seed": 7,
        },
        "accuracy": None,
        "latency": None,
        "notes": {"accuracy": "not verified yet", "latency": "this engine was not timed"},
        "gpu": "Orin (nvgpu)",
        "compute_capability": "8.7",
        "cuda": "12.6",
        "jetpack": "L4T 36.4.3",
        "power_mode": "25W",
        "missing": {},
    }


def test_what_is_written_is_read(plan, build, origin):
    data, sidecar = read_engine(plan)
    assert data == PLAN
    assert sidecar == Sidecar(
        sha256_bytes(PLAN),
        len(PLAN),
        "merged",
        "fp16",
        "tensorrt",
        "10.3.0",
        build.settings,
        1.5,
        ORIN,
        build.inputs,
        build.outputs,
        {},
        origin,
        notes={"accuracy": "not verified yet", "latency": "this engine was not timed"},
    )
    assert check_engine(plan) == sidecar


def test_no_gpu_is_null_with_a_reason(tmp_path, build, origin):
    machine = Machine(missing={"gpu": "no driver"})
    plan = write_engine(tmp_path, build, origin, machine)
    assert plan.parent.name == "any"
    body = json.loads(sidecar_path(plan).read_text())
    assert (body["gpu"], body["missing"]) == (None, {"gpu": "no driver"})
    assert check_engine(plan).machine == machine


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network": "original"}, "its network is merged"),
        ({"precision": "fp32"}, "its precision is fp16"),
        ({"onnx_sha256": "c" * 64}, f"its onnx_sha256 is {'a' * 64}"),
        ({"weights_sha256": "c" * 64}, f"its weights_sha256 is {'b' * 64}"),
        ({"network": "original", "weights_sha256": None}, "is merged, weights_sha256 is b"),
    ],
)
def test_an_engine_of_another_network_is_refused_unless_trusted(plan, change, words):
    wanted = Identity("merged", "fp16", "a" * 64, "b" * 64)
    assert read_engine(plan, wanted=wanted)[0] == PLAN
    other = replace(wanted, **change)
    with pytest.raises(UntrustedInputError, match=f"another network than it stands for.*{words}"):
        check_engine(plan, wanted=other)
    assert read_engine(plan, trust=True, wanted=other) == (PLAN, None)


def test_missing_sidecar_is_refused_unless_trusted(plan):
    sidecar_path(plan).unlink()
    with pytest.raises(UntrustedInputError, match=r"missing or damaged.*--trust-engine, only for"):
        check_engine(plan)
    assert check_engine(plan, trust=True) is None
    assert read_engine(plan, trust=True) == (PLAN, None)


def test_another_engine_is_refused_unless_trusted(plan):
    plan.write_bytes(PLAN + b"!")
    with pytest.raises(UntrustedInputError, match="describes another engine"):
        check_engine(plan)
    assert read_engine(plan, trust=True) == (PLAN + b"!", None)


def test_every_flipped_byte_of_the_engine_is_noticed(plan):
    for position in range(0, len(PLAN), 37):
        plan.write_bytes(PLAN[:position] + bytes([PLAN[position] ^ 1]) + PLAN[position + 1 :])
        with pytest.raises(UntrustedInputError):
            check_engine(plan)


def test_damaged_sidecars_never_end_in_a_traceback(plan):
    """Every truncation, and 2,000 seeded mutations: a sidecar, or a refusal."""
    good = sidecar_path(plan).read_bytes()
    rng = random.Random(0)
    mutations = [good[:n] for n in range(len(good) - 2)]
    for _ in range(2000):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] = rng.randrange(256)
        mutations.append(bytes(bad))
    refused = 0
    for bad in mutations:
        sidecar_path(plan).write_bytes(bad)
        try:
            assert isinstance(check_engine(plan), Sidecar)
        except UntrustedInputError:
            refused += 1
    assert refused >= len(good) - 2  # every truncation


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", "trt-layermerge/plan@1"),
        ("precision", "fp8"),
        ("network", "another"),
        ("library", "evilmod"),
        ("profile", {"input": [[1, 3, 32, 32]]}),
        ("profile", None),
        ("plan_sha256", 5),
        ("plan_bytes", "many"),
        ("build_seconds", float("nan")),
        ("inputs", [1, 2]),
        ("outputs", {"logits": "x"}),
        ("origin", None),
        ("gpu", 3),
        ("accuracy", {"merged": "high"}),
        ("missing", None),
    ],
)
def test_malformed_fields_are_refused(plan, field, value):
    body = json.loads(sidecar_path(plan).read_text())
    sidecar_path(plan).write_text(json.dumps({**body, field: value}))
    with pytest.raises(UntrustedInputError, match="missing or damaged"):
        check_engine(plan)


def test_no_engine(tmp_path):
    with pytest.raises(UsageError, match="trt-layermerge build"):
        check_engine(tmp_path / "model.fp16.plan")


def test_a_pipe_in_the_place_of_an_engine_is_not_waited_for(plan):
    plan.unlink()
    os.mkfifo(plan)
    with pytest.raises(UsageError, match="a pipe or a device"):
        check_engine(plan)


def test_links_in_a_circle_and_engines_beyond_all_memory_are_refused(plan):
    plan.unlink()
    plan.symlink_to(plan.name)
    with pytest.raises(UsageError, match="cannot read the engine"):
        check_engine(plan)
    plan.unlink()
    with plan.open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(UsageError, match="it is larger than the memory"):
        check_engine(plan)


def test_later_findings_are_added(plan):
    amend_sidecar(plan, accuracy={"original": 0.99, "merged": 0.98})
    sidecar = amend_sidecar(plan, latency={"p50_ms": 0.2, "p99_ms": 0.3})
    assert sidecar == check_engine(plan)
    assert sidecar.accuracy == {"original": 0.99, "merged": 0.98}
    assert sidecar.latency == {"p50_ms": 0.2, "p99_ms": 0.3}
    assert sidecar.notes == {}
    plan.write_bytes(b"other")
    with pytest.raises(UntrustedInputError):
        amend_sidecar(plan, latency={"p50_ms": 0.1})


def test_interrupted_write_leaves_no_wrong_sidecar(plan, build, origin, monkeypatch, tmp_path):
    def full(path, data):
        path.write_bytes(data[:10])
        raise DeviceError("disk full")

    monkeypatch.setattr("trt_layermerge.deploy.sidecar.write_bytes", full)
    with pytest.raises(DeviceError, match="disk full"):
        write_engine(tmp_path / "engines", build, origin, ORIN)
    with pytest.raises(UntrustedInputError):
        check_engine(plan)


def test_a_full_disk_leaves_the_old_engine_and_its_sidecar(plan, build, origin, monkeypatch):
    before = plan.read_bytes(), sidecar_path(plan).read_bytes()

    def fsync(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DeviceError, match="No space left"):
        write_engine(plan.parents[1], replace(build, plan=b"another"), origin, ORIN)
    assert (plan.read_bytes(), sidecar_path(plan).read_bytes()) == before
    assert check_engine(plan) is not None


def test_unwritable_folder_is_named(tmp_path, build, origin):
    (tmp_path / "engines").write_text("a file")
    with pytest.raises(LayerMergeError, match="engines"):
        write_engine(tmp_path / "engines", build, origin, ORIN)


def test_original_network_lies_beside_the_merged_one(tmp_path, build, origin, plan):
    root = tmp_path / "engines"
    original = write_engine(root, build, replace(origin, weights_sha256=None), ORIN, "original")
    assert original == plan.with_name("original.fp16.plan")
    assert check_engine(original).network == "original"
    assert check_engine(original).origin.weights_sha256 is None
    assert check_engine(plan).network == "merged"


def test_profile_comes_back(tmp_path, build, origin):
    shapes = ((1, 3, 32, 32), (4, 3, 32, 32), (8, 3, 32, 32))
    dynamic = replace(build, inputs={"input": (-1, 3, 32, 32)}, profile={"input": shapes})
    sidecar = check_engine(write_engine(tmp_path, dynamic, origin, ORIN))
    assert sidecar.inputs == {"input": (-1, 3, 32, 32)}
    assert sidecar.profile == {"input": shapes}


def test_another_version_is_told_with_what_to_type(plan):
    sidecar = check_engine(plan)
    assert mismatch(sidecar, "tensorrt", "10.3.0", ORIN, plan) is None
    assert mismatch(sidecar, "tensorrt", "10.16.0", ORIN, plan) == (
        "an engine belongs to one version of TensorRT: this one was built with tensorrt 10.3.0, "
        "and here is tensorrt 10.16.0; build it again on this machine: trt-layermerge build --run "
        f"{plan.parents[2].name} --runs-dir {plan.parents[3]}"
    )
    words = mismatch(sidecar, "tensorrt_rtx", "10.3.0", ORIN)
    assert "here is tensorrt_rtx 10.3.0" in words
    assert words.endswith("trt-layermerge build --run NAME")


def test_another_gpu_is_told_with_what_to_type(plan):
    sidecar = check_engine(plan)
    assert mismatch(sidecar, "tensorrt", "10.3.0", Machine("Thor", "11.0"), plan) == (
        "an engine belongs to one kind of GPU: this one was built for Orin (nvgpu) (compute "
        "capability 8.7), and here is Thor (compute capability 11.0); build it again on this "
        f"machine: trt-layermerge build --run {plan.parents[2].name} --runs-dir {plan.parents[3]}"
    )
    assert "and here is no GPU" in mismatch(sidecar, "tensorrt", "10.3.0", Machine())
    assert "and here is Orin (nvgpu);" in mismatch(
        sidecar, "tensorrt", "10.3.0", Machine("Orin (nvgpu)")
    )


def test_engine_for_any_gpu_fits_every_gpu(tmp_path, build, origin):
    sidecar = check_engine(write_engine(tmp_path, build, origin, Machine()))
    assert mismatch(sidecar, "tensorrt", "10.3.0", Machine("Thor")) is None


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        ("10.3.0", "10.16.1", True),
        ("10.3.0", "10.3.0", True),
        ("8.6.2", "10.3.0", True),
        ("10.3.0", "11.4.0", True),
        ("10.16.1", "10.3.0", False),
        ("8.6.2", "11.4.0", False),
        ("11.4.0", "10.3.0", False),
    ],
)
def test_version_compatible_engines_go_forward_only(tmp_path, build, origin, built, here, fits):
    wide = replace(build, version=built, settings={"version_compatible": True})
    sidecar = check_engine(write_engine(tmp_path, wide, origin, ORIN))
    why = mismatch(sidecar, "tensorrt", here, ORIN)
    assert (why is None) == fits
    assert fits or "which reaches newer versions only" in why
    assert mismatch(sidecar, "tensorrt_rtx", here, ORIN) is not None


def test_hardware_compatible_engines_run_from_ampere_on(tmp_path, build, origin):
    wide = replace(build, settings={"hardware_compatible": True})
    sidecar = check_engine(write_engine(tmp_path, wide, origin, Machine("A100", "8.0")))
    for machine, fits in (
        (Machine("RTX 4090", "8.9"), True),
        (Machine("RTX 5090", "12.0"), True),
        (Machine("T4", "7.5"), False),
        (Machine(), False),
    ):
        assert (mismatch(sidecar, "tensorrt", "10.3.0", machine) is None) == fits


def test_tampered_engine_names_the_run_to_build_again(tmp_path, build, origin):
    plan = write_engine(tmp_path / "runs" / "mine" / "engines", build, origin, ORIN)
    plan.write_bytes(PLAN[:-1])
    with pytest.raises(UntrustedInputError) as refusal:
        check_engine(plan)
    assert str(refusal.value) == (
        f"the engine {plan} is not loaded, because its sidecar model.fp16.json describes another "
        "engine (one of the files was changed, damaged or mixed up), and an engine runs code of "
        f"its own; build it again (trt-layermerge build --run mine --runs-dir {tmp_path}/runs), or "
        "type --trust-engine, only for engines that you built yourself"
    )


def test_this_machine_explains_every_null(monkeypatch, tmp_path):
    machine = this_machine()
    for name in ("gpu", "compute_capability", "cuda", "jetpack", "power_mode"):
        assert (getattr(machine, name) is None) == (name in machine.missing)
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
    monkeypatch.setattr("trt_layermerge.backends.host._TEGRA_RELEASE", release)
    jetson = this_machine(power_mode="25W")
    assert (jetson.jetpack, jetson.power_mode) == ("L4T 36.4.3", "25W")
    assert not {"jetpack", "power_mode"} & set(jetson.missing)
