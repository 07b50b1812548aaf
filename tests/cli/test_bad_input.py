"""Bad input of every kind, typed at the real command line beside a finished run.

Each ends with one paragraph, its own exit code, and nothing lost.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.pipeline import tiny
from trt_layermerge.backends.fake import FakeBackend
from trt_layermerge.cli.main import main
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.errors import UsageError
from trt_layermerge.session.latency import Latencies

USAGE, UNSUPPORTED, DEVICE, LATENCY, CORRUPT = 2, 3, 4, 6, 7


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.target), "w")


@pytest.fixture(scope="module")
def bad(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of files that are all wrong."""
    folder = tmp_path_factory.mktemp("bad")
    state = load_file(finished / "tiny.safetensors")
    torch.save({"head.weight": Payload(folder / "canary")}, folder / "zipped.pt")
    (folder / "plain.pt").write_bytes(pickle.dumps(Payload(folder / "canary")))
    save_file({**state, "head.bias": torch.full((4,), torch.nan)}, folder / "nan.safetensors")
    save_file({**state, "head.bias": torch.zeros(5)}, folder / "other.safetensors")
    data = (finished / "tiny.safetensors").read_bytes()
    (folder / "half.safetensors").write_bytes(data[: len(data) // 2])

    images, labels = tiny.stripes(40, 9)
    np.savez(folder / "empty.npz", images=images[:0], labels=labels[:0])
    np.savez(folder / "one.npz", images=images[:1], labels=labels[:1])
    np.savez(folder / "small.npz", images=images[:, :8, :8], labels=labels)
    np.savez(folder / "gray.npz", images=images[..., :1], labels=labels)
    np.savez(folder / "unlabelled.npz", images=images)
    np.savez(folder / "objects.npz", images=np.array([Payload(folder / "canary")]), labels=labels)
    archive = (folder / "small.npz").read_bytes()
    (folder / "half.npz").write_bytes(archive[: len(archive) // 2])
    (folder / "photos" / "cat").mkdir(parents=True)

    (folder / "list.yaml").write_text("- model\n- data\n")
    (folder / "open.yaml").write_text("model: {name: [\n")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    (folder / "unknown.yaml").write_text("model: {name: 'timm:resnet18'}\nserach: {speedup: 2}\n")
    (folder / "code.yaml").write_text("model: {name: !!python/object/apply:os.getcwd []}\n")
    without = tiny.RECIPE.replace("  train: npz:train.npz\n", "").replace(
        "npz:", f"npz:{finished}/"
    )
    without = without.replace("nets.py", f"{finished}/nets.py")
    (folder / "nodata.yaml").write_text(without.replace("tiny.s", f"{finished}/tiny.s"))
    (folder / "file").write_text("")
    return folder


def refused(
    capsys: pytest.CaptureFixture[str], arguments: str, places: Mapping[str, Path]
) -> tuple[int, str]:
    """Returns exit code and paragraph of a command that fails; nothing else was printed."""
    typed = [word.format_map({k: str(v) for k, v in places.items()}) for word in arguments.split()]
    code = main([*typed, "-q"])
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return code, err


BEGUN = [
    ("--model timm:resnet19", USAGE, "did you mean resnet18"),
    ("--model torchvision:resnet19", USAGE, "did you mean resnet18"),
    ("--model {bad}/none.py:net", USAGE, "cannot read .*none.py: No such file"),
    ("--model {project}/nets.py:none", USAGE, "nets.py has no function 'none'"),
    ("--model no.such.package:net", USAGE, "cannot import no.such.package"),
    ("--model resnet18", USAGE, "names no network; type timm:NAME"),
    ("--model net.onnx", USAGE, "there is no ONNX file"),
    ("--model {project}/nets.py:undecided", UNSUPPORTED, "control flow.*pass the backbone"),
    ("--model {project}/nets.py:Basic", USAGE, "cannot make .*TypeError"),
    ("--model {project}/nets.py:greedy", CORRUPT, "do not fit the network: .* are missing"),
    ("--weights {bad}/none.safetensors", USAGE, "cannot read .*none.safetensors: No such file"),
    ("--weights {bad}", USAGE, "Is a directory"),
    ("--weights {bad}/half.safetensors", CORRUPT, "half.safetensors are damaged"),
    ("--weights {bad}/other.safetensors", CORRUPT, r"head.bias is \(5,\), not \(4,\)"),
    ("--weights {bad}/nan.safetensors", CORRUPT, "head.bias has values that are not finite"),
    ("--weights {bad}/zipped.pt", CORRUPT, "could execute code; it was not read. Save"),
    ("--weights {bad}/plain.pt", CORRUPT, "could execute code; it was not read. Save"),
    ("--input 1x4x16x16", USAGE, "mean has 3 values, and the input .* has 4 channels"),
    (
        "--input 1x1x16x16 --set data.preprocess.mean=[0.5] --set data.preprocess.std=[0.5]",
        UNSUPPORTED,
        "expected input.* to have 3 channels, but got 1",
    ),
    ("--input 3x16x16", USAGE, "is not a shape; type it like --input 1x3x224x224"),
    ("--input 1x3x24x24", CORRUPT, "traced and measured at .3, 24, 24.; set model.input"),
    ("--train npz:{bad}/none.npz", USAGE, "none.npz.*; check its name"),
    ("--train imagefolder:{bad}/none", USAGE, "there is no folder .*none"),
    ("--train {bad}/none.py:images", USAGE, "none.py"),
    ("--train {bad}/small.npz", USAGE, "names no data; type npz:FILE"),
    ("--train npz:{bad}/empty.npz", CORRUPT, "empty.npz cannot be used: it holds no images"),
    ("--train imagefolder:{bad}/photos", USAGE, "has no images in sub-folders"),
    ("--train npz:{bad}/one.npz", USAGE, "single training image.*give more"),
    ("--train npz:{bad}/half.npz", CORRUPT, "half.npz cannot be used"),
    (
        "--train npz:{bad}/unlabelled.npz --set finetune.options.distill_weight=0",
        USAGE,
        "distill_weight",
    ),
    ("--train npz:{bad}/objects.npz", CORRUPT, "pickled objects"),
    ("--train npz:{bad}/gray.npz", USAGE, "1 channels"),
    ("--train npz:{bad}/small.npz", CORRUPT, "small.npz are inputs of shape .3, 8, 8."),
    ("--val npz:{bad}/small.npz", CORRUPT, "small.npz are inputs of shape .3, 8, 8."),
    ("--test npz:{bad}/none.npz --speedup 1.2", USAGE, "cannot read .*none.npz: No such file"),
    ("--test imagefolder:{bad}/none --speedup 1.2", USAGE, "there is no folder .*none; check"),
    (
        "--set verify.max_accuracy_drop=0.01 --set data.test=null --speedup 1.2",
        USAGE,
        "no test images with labels",
    ),
    ("--speedup 1", USAGE, "search.speedup: input should be greater than 1"),
    ("--budget-ms nan", USAGE, "search.budget_ms"),
    ("--seed -1", USAGE, "seed: input should be greater than or equal to 0"),
    ("--device gpu7 --speedup 1.2", USAGE, "there is no device 'gpu7'"),
    ("--device cuda:99 --speedup 1.2", DEVICE, "cannot compute on 'cuda:99' here.*--device cpu"),
    ("--precision fp17", USAGE, "measure.precision"),
    ("--precision fp8", USAGE, "measure.precision: fp8 needs .* choose int8 or fp16"),
    ("--set build.precisions=[bf16]", USAGE, "build.precisions.0: bf16 needs .* choose fp16"),
    ("--set calibrate.preset={bad}/none.yaml --speedup 1.2", USAGE, "preset .*none.yaml"),
    ("--set calibrate.options.method=guess --speedup 1.2", USAGE, "method .* one of minmax"),
    ("--budget-ms 0.0001", LATENCY, r"no network meets .*takes 0.01\d+ ms .* % too slow; raise"),
]


@pytest.mark.parametrize(("options", "code", "words"), BEGUN, ids=[case[0] for case in BEGUN])
def test_a_finished_run_survives_what_cannot_be_done(
    runs: Path,
    finished: Path,
    bad: Path,
    capsys: pytest.CaptureFixture[str],
    options: str,
    code: int,
    words: str,
) -> None:
    places = {"bad": bad, "project": finished, "runs": runs}
    found, paragraph = refused(capsys, f"run --run tiny --runs-dir {{runs}} {options}", places)
    assert found == code, paragraph
    assert re.search(words, paragraph), paragraph
    assert not (bad / "canary").exists()
    _, told = tiny.run(runs, finished / "tiny.yaml")
    assert {*told.stages("run")} <= {"inspect"}


BEGINNING = [
    ("run", USAGE, "nothing to run: name a recipe"),
    ("run {bad}/none.yaml", USAGE, "there is no recipe .*none.yaml"),
    ("run {bad}", USAGE, "cannot read the recipe .*: Is a directory"),
    ("run {bad}/list.yaml", CORRUPT, "list.yaml is not a mapping"),
    ("run {bad}/open.yaml", CORRUPT, "open.yaml is not valid YAML: .*line 2"),
    ("run {bad}/binary.yaml", CORRUPT, "binary.yaml is not valid YAML"),
    ("run {bad}/code.yaml", CORRUPT, "code.yaml is not valid YAML: .*python/object"),
    ("run {bad}/unknown.yaml", USAGE, "unknown.yaml cannot be used: serach: .* mean search"),
    ("run {bad}/nodata.yaml", USAGE, "names no training images.*set data.train"),
    ("inspect --run new", USAGE, "there is no run 'new'"),
    ("search --run new --recipe {project}/tiny.yaml", USAGE, "has no graph.json, .*do the earlier"),
    (
        "inspect --run new --model {project}/nets.py:greedy --input 1x3x16x16",
        UNSUPPORTED,
        "fails on an example input of shape .1, 3, 16, 16.*; pass an input",
    ),
    ("run {project}/tiny.yaml --runs-dir {bad}/file", DEVICE, "cannot write .*Not a directory"),
    ("run {project}/tiny.yaml --run ..", USAGE, "cannot be the name of a run"),
]


@pytest.mark.parametrize(("typed", "code", "words"), BEGINNING, ids=[case[0] for case in BEGINNING])
def test_a_run_does_not_begin_with_what_cannot_be_done(
    tmp_path: Path,
    finished: Path,
    bad: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, paragraph = refused(capsys, typed, {"bad": bad, "project": finished})
    assert found == code, paragraph
    assert re.search(words, paragraph), paragraph


TABLES = [
    ("candidates.jsonl", "importance"),
    ("latency.jsonl", "search"),
    ("importance.jsonl", "importance"),
    ("importance.jsonl", "search"),
    ("plan.json", "merge"),
    ("graph.json", "importance"),
    ("networks.jsonl", "search"),
    ("latency.sqlite", "latency"),
    ("relaxed.safetensors", "merge"),
    ("bench.json", "report"),
]
DAMAGES: Mapping[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2] + (b"\n" if data[:1] == b"{" else b""),
    "garbled": lambda data: data[:20] + bytes(b ^ 0x5A for b in data[20:80]) + data[80:],
}


# SQLite takes an empty file for a new one, so the store is measured anew then.
DAMAGED = [(*t, d) for t in TABLES for d in DAMAGES if (t[0], d) != ("latency.sqlite", "empty")]


@pytest.mark.parametrize(("name", "stage", "damage"), DAMAGED)
def test_a_damaged_file_is_named_and_no_other_is_touched(
    runs: Path, capsys: pytest.CaptureFixture[str], name: str, stage: str, damage: str
) -> None:
    path = runs / "tiny" / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    if name == "latency.sqlite":
        (runs / "tiny" / "latency.jsonl").unlink()
    before = tiny.files(runs)
    code, paragraph = refused(capsys, f"{stage} --run tiny --runs-dir {{runs}}", {"runs": runs})
    assert code == CORRUPT, paragraph
    assert str(path) in paragraph
    assert re.search(r"delete (the file|it)|make the file again|run .*again", paragraph), paragraph
    assert tiny.files(runs) == before


@pytest.mark.parametrize("writes", [0, 5, 40])
def test_a_full_disk_is_said_and_what_was_done_stays_done(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    writes: int,
) -> None:
    room = iter(range(writes))

    def fsync(handle: int) -> None:
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    typed = "run {project}/tiny.yaml --runs-dir {runs}"
    places = {"project": finished, "runs": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        code, paragraph = refused(capsys, typed, places)
    assert code == DEVICE
    assert re.search("No space left on device; .*--runs-dir DIR", paragraph), paragraph
    assert not list(tmp_path.rglob(".*"))
    _, told = tiny.run(tmp_path, finished / "tiny.yaml")
    if writes == 40:
        assert told.stages("skip")[:2] == ("inspect", "latency")
    plans = [folder / "tiny" / "plan.json" for folder in (tmp_path, finished / "runs")]
    assert plans[0].read_bytes() == plans[1].read_bytes()


def test_a_locked_latency_store_is_no_damage(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trt_layermerge.measure.store._WAIT_S", 0.05)
    (runs / "tiny" / "latency.jsonl").unlink()
    other = sqlite3.connect(runs / "tiny" / "latency.sqlite")
    try:
        other.execute("BEGIN EXCLUSIVE")
        code, paragraph = refused(capsys, "latency --run tiny --runs-dir {runs}", {"runs": runs})
    finally:
        other.close()
    assert code == DEVICE
    assert "database is locked" in paragraph and "wait for the other process" in paragraph


def flipped(data: bytes) -> bytes:
    """Returns a file with one digit or bit of its last quarter changed: it still can be read."""
    place = next(i for i in range(len(data) * 3 // 4, len(data)) if data[i : i + 1].isdigit())
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def shorter(data: bytes) -> bytes:
    """Returns a table without its last line."""
    return data[: data.rstrip().rindex(b"\n") + 1]


@pytest.mark.parametrize(
    ("name", "change", "stage"),
    [
        ("networks.jsonl", shorter, "search"),
        ("importance.jsonl", flipped, "search"),
        ("latency.jsonl", flipped, "importance"),
        ("merged.safetensors", flipped, "export"),
        ("merged.safetensors", flipped, "verify"),
        ("bench.json", flipped, "report"),
        ("plan.json", flipped, "finetune"),
    ],
)
def test_a_verb_refuses_a_direct_input_that_is_not_as_it_was_made(
    runs: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: Callable[[bytes], bytes],
    stage: str,
) -> None:
    path = runs / "tiny" / name
    content = path.read_bytes()
    path.write_bytes(change(content))
    before = tiny.files(runs)
    code, paragraph = refused(capsys, f"{stage} --run tiny --runs-dir {{runs}}", {"runs": runs})
    assert code == CORRUPT, paragraph
    assert f"{path} is not as" in paragraph
    assert f"trt-layermerge run --run tiny --runs-dir {runs}" in paragraph
    assert tiny.files(runs) == before
    if name != "importance.jsonl":  # a table of days is not thrown away unasked
        tiny.run(runs)
        assert path.read_bytes() != change(content)
        assert name == "bench.json" or path.read_bytes() == content  # which has times of its own


@pytest.mark.parametrize("where", [0.3, 0.6, 0.9])
def test_a_changed_digit_in_a_table_of_scores_is_redone_not_continued(
    runs: Path, capsys: pytest.CaptureFixture[str], where: float
) -> None:
    path = runs / "tiny" / "importance.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    number = int(where * len(lines))
    digits = re.sub(
        rb'("delta": -?\d*\.)(\d)', lambda m: m[1] + b"%d" % ((int(m[2]) + 1) % 10), lines[number]
    )
    assert digits != lines[number]
    path.write_bytes(b"".join([*lines[:number], digits, *lines[number + 1 :]]))
    code, paragraph = refused(capsys, "importance --run tiny --runs-dir {runs}", {"runs": runs})
    assert code == CORRUPT and f"line {number + 1} is not as it was written" in paragraph
    path.write_bytes(b"".join([*lines[:number], *lines[number + 1 :]]))  # as the message says
    _, told = tiny.run(runs)
    assert told.stages("run") == ("importance",)
    assert path.read_bytes() == b"".join(lines)


HOLD = """
import sys, time
from pathlib import Path
from trt_layermerge.pipeline.folder import RunFolder, locked
with locked(RunFolder(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("typed", ["run", "bench", "latency", "latency --export-jobs {new}"])
def test_a_second_process_is_kept_out_of_a_run_until_the_first_has_ended_or_was_killed(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], typed: str
) -> None:
    verb, _, rest = typed.partition(" ")
    typed = f"{verb} --run tiny --runs-dir {{runs}} {rest}"
    before = tiny.files(runs)
    arguments = [sys.executable, "-c", HOLD, str(runs / "tiny")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        code, paragraph = refused(capsys, typed, {"runs": runs, "new": tmp_path / "new"})
        other.kill()
    assert code == DEVICE
    assert f"another process (number {other.pid} on " in paragraph
    assert "works on the run 'tiny'; wait until it has ended" in paragraph
    left = dict(tiny.files(runs))
    assert left.pop("tiny/.lock")  # the trace of the kill
    assert left == before
    assert tiny.run(runs)[1].stages("run") == ()
    assert tiny.files(runs) == before


def test_a_search_does_not_mix_devices_or_versions(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Upgraded(FakeBackend):
        def device(self) -> DeviceInfo:
            return replace(super().device(), backend_version="9")

    typed = "search --run tiny --runs-dir {runs} --speedup 1.2"
    monkeypatch.setattr("trt_layermerge.session.state.get_backend", lambda name: Upgraded())
    before = tiny.files(runs)
    code, paragraph = refused(capsys, typed, {"runs": runs})
    assert code == USAGE
    assert "such latencies do not compare" in paragraph and "fake 9" in paragraph
    assert f"trt-layermerge run --run tiny --from latency --runs-dir {runs}" in paragraph
    after = tiny.files(runs)
    assert after == before
    _, told = tiny.run(runs, overrides={"search.speedup": 1.2}, from_stage="latency")
    assert {"latency", "search"} <= {*told.stages("run")}


def test_tables_of_two_devices_are_not_read_as_one(runs: Path) -> None:
    path = runs / "tiny" / "networks.jsonl"
    path.write_text(path.read_text().replace('"name": "fake', '"name": "another', 1))
    with pytest.raises(UsageError, match="such latencies do not compare"):
        Latencies.load(runs / "tiny")
