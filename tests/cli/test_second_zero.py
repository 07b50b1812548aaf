"""Wishes that cannot come true are refused before anything is measured, at the command line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline import tiny
from trt_layermerge.cli.main import main
from trt_layermerge.errors import MissingDependencyError
from trt_layermerge.pipeline import expected, room

USAGE, UNSUPPORTED, DEVICE, LATENCY, CORRUPT = 2, 3, 4, 6, 7


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """Returns the tiny project's folder, with more files to name; do not write to others."""
    images, labels = tiny.stripes(40, 9)
    np.savez(tmp_path / "unlabelled.npz", images=images)
    np.savez(tmp_path / "labels.npz", images=images, labels=labels + 3)
    return finished


def refused(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str
) -> tuple[int, str]:
    """Returns code and words of a run that is refused before it measures anything."""
    words = options.format(tmp=tmp_path).split()
    code = main(["run", f"{project}/tiny.yaml", "--runs-dir", str(tmp_path / "runs"), *words])
    err = capsys.readouterr().err
    assert code != 0, err
    assert not (tmp_path / "runs" / "tiny" / "latency.jsonl").exists(), err
    return code, err


NO_LABELS = "--train npz:{tmp}/unlabelled.npz"
KERNELS = "--set search.limits.kernels="
WISHES = [
    # kernels: even, beyond what any block sees, one of several
    (f"{KERNELS}[2,4]", USAGE, r"fitted convolution of size 2, 4: .* can have: 1, 3, 5"),
    (f"{KERNELS}[3,99]", USAGE, "fitted convolution of size 99: it reaches beyond"),
    (f"{KERNELS}[99] --set search.kinds=[fit]", USAGE, "size 99"),
    (f"{KERNELS}[0]", USAGE, "search.limits.kernels.0: input should be greater"),
    # precisions and engines
    ("--set build.engine=tensorrt", DEVICE, "build.engine tensorrt cannot build engines here"),
    ("--set build.precisions=[fp8]", USAGE, "fp8 needs"),
    ("--backend tensorrt", DEVICE, "needs the package 'tensorrt'"),
    ("--set measure.backend=nosuch", USAGE, "there is no backend 'nosuch'"),
    # gates
    ("--set verify.max_accuracy_drop=0 --set data.test=null", USAGE, "no test images with labels"),
    ("--set verify.max_metric_drop=0.1", USAGE, "limit on data.metric, and there is none"),
    ("--set data.metric={tmp}/none.py:metric", USAGE, "there is no file .*none.py"),
    ("--set measure.recorded=true --set verify.max_latency_ms=1", USAGE, "nothing is timed"),
    # presets and options
    ("--set finetune.preset=longer", USAGE, "there is no recipe 'longer'; known: short"),
    ("--set finetune.options.epoch=3", USAGE, "did you mean epochs"),
    ("--set finetune.options.augment=flip:1", USAGE, r"augment is a list .* type \[flip:1\]"),
    ("--set finetune.options.augment=[flop:1]", USAGE, "'flop:1' is not understood"),
    ("--set importance.finetune.nosuch=1", USAGE, "no field nosuch"),
    ("--precision int8 --set calibrate.options.percentile=200", USAGE, "from 50 to 100"),
    ("--set calibrate.options.nosuch=1", USAGE, "has no 'nosuch'"),
    ("--set task=nosuch", USAGE, "task: input should be 'auto'"),
    ("--set task.nosuch=regression", USAGE, "task names nosuch"),
    # labels
    (f"--set importance.method=finetune {NO_LABELS}", USAGE, "have no labels"),
    (f"--set calibrate.qat_epochs=1 {NO_LABELS}", USAGE, "have no labels"),
    (f"--set finetune.options.distill_weight=0 {NO_LABELS}", USAGE, "distill_weight"),
    *((f"--{name} npz:{{tmp}}/labels.npz", CORRUPT, "label") for name in ("train", "val", "test")),
    # paths, devices, processes
    ("--set data.val=npz:{tmp}/none.npz", USAGE, "none.npz"),
    ("--set measure.store={tmp}/labels.npz", CORRUPT, "labels.npz is damaged"),
    ("--device cuda:99", DEVICE, "cannot compute on 'cuda:99' here"),
    ("--set measure.host=none.invalid", DEVICE, "none.invalid"),
    # sizes
    ("--batch 1000000", USAGE, "a batch of 1000000 .* type a smaller --batch"),
    ("--set build.max_batch=4 --batch 8", USAGE, "tiny.yaml with the options beside it cannot"),
    # bundles
    ("--set package.targets=[triton,nosuch]", USAGE, "package.targets.1"),
]


@pytest.mark.parametrize(("options", "code", "words"), WISHES, ids=[case[0] for case in WISHES])
def test_a_wish_that_cannot_come_true_is_refused_before_anything_is_measured(
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: str,
    code: int,
    words: str,
) -> None:
    found, err = refused(project, tmp_path, capsys, options)
    assert found == code, err
    assert re.search(words, err), err


@pytest.mark.parametrize(
    "options",
    [
        f"{KERNELS}[1,3,5,7]",  # the usual ones may be of no use
        f"{KERNELS}[2] --rules paper",  # nothing is fitted
        f"{KERNELS}[2] --set search.kinds=[compose,identity]",
        "--set build.engine=auto",
    ],
)
def test_what_is_of_no_matter_is_not_refused(
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: str,
) -> None:
    def far_enough(*_: object) -> None:
        raise MissingDependencyError("this", "the test", "test")

    monkeypatch.setattr("trt_layermerge.session.session.Session.measure", far_enough)
    code, err = refused(project, tmp_path, capsys, options)
    assert code == DEVICE and "the test needs the package 'this'" in err


def test_a_precision_that_only_an_engine_would_have_is_tried_on_the_original(
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(project / "tiny.safetensors")
    save_file({**weights, "head.weight": weights["head.weight"] + 1e6}, tmp_path / "l.safetensors")
    asked = "--weights {tmp}/l.safetensors --set build.precisions=[fp32,int8,fp16]"
    code, err = refused(project, tmp_path, capsys, f"{asked} --set build.engine=auto")
    assert code == UNSUPPORTED and "itself cannot be fp16 (build.precisions)" in err


def test_a_latency_limit_out_of_reach_is_told_before_scoring(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", f"{project}/tiny.yaml", "--runs-dir", str(tmp_path / "runs")]
    assert main([*words, "--set", "verify.max_latency_ms=0.000001"]) == LATENCY
    assert "verify.max_latency_ms allows 1e-06 ms, and the fastest" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "tiny" / "importance.jsonl").exists()


def test_missing_images_are_told_before_the_network_is_inspected(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = refused(project, tmp_path, capsys, "--set data.train=null")
    assert code == USAGE and "names no training images" in err and "inspect" not in err
    assert not (tmp_path / "runs").exists()


def test_memory_of_a_batch_is_counted(
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "available_memory", lambda: 64 * room.MIB)
    code, err = refused(project, tmp_path, capsys, "--batch 8192")
    assert code == DEVICE and "or measure smaller batches (--batch)" in err


def test_a_real_network_tells_which_kernels_its_blocks_can_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "train.npz", images=np.zeros((8, 32, 32, 3), np.uint8))
    recipe = tmp_path / "real.yaml"
    recipe.write_text(
        "{model: {name: 'timm:resnet18', input: [1, 3, 32, 32]}, data: {train: npz:train.npz}, "
        "measure: {backend: fake}, search: {limits: {kernels: [3, 4, 31]}}}"
    )
    assert main(["run", str(recipe), "--runs-dir", str(tmp_path / "runs")]) == USAGE
    err = capsys.readouterr().err
    assert "of size 4, 31" in err and "can have: 1, 3, 5, 7" in err
    assert not (tmp_path / "runs" / "real" / "latency.jsonl").exists()


def test_the_time_is_told_at_the_beginning_and_corrected(
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(expected, "WORTH_TELLING_S", 0.0)
    assert main(["run", f"{project}/tiny.yaml", "--runs-dir", str(tmp_path)]) == 0
    err = capsys.readouterr().err
    begun = err.index("this will take about ")
    assert re.search(r"latency .*importance .*search .*finetune ", err[begun:].splitlines()[0])
    assert err.index("✓ inspect") < begun < err.index("✓ latency")
    for name in ("latency", "importance", "search"):
        told = re.search(rf"{name} took .*, .* were expected; about .* are left", err)
        assert told and told.start() > err.index(f"✓ {name}")


def test_a_layer_that_only_the_merged_network_may_have_is_doubted_at_once(
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def far_enough(*_: object) -> None:
        raise MissingDependencyError("this", "the test", "test")

    monkeypatch.setattr("trt_layermerge.session.session.Session.measure", far_enough)
    asked = "--precision int8 --set calibrate.options.keep_float=[/stem/stem.0/Konv]"
    _, err = refused(project, tmp_path, capsys, asked)
    assert "the original network has no node /stem/stem.0/Konv (keep_float)" in err
    assert "did you mean /stem/stem.0/Conv" in err
