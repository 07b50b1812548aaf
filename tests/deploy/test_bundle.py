"""What every bundle has, and that it is read only as it was written."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.deploy.bundles import (
    LABELS,
    ORIN,
    PLAN,
    UNIFORM,
    change_manifest,
    contents,
    run,
    several,
    signed,
    with_plan,
)
from trt_layermerge.core.jsonio import sha256_bytes
from trt_layermerge.deploy.bundle import folder as folder_module
from trt_layermerge.deploy.bundle.contents import TARGETS
from trt_layermerge.deploy.bundle.folder import read_bundle, write_bundle
from trt_layermerge.deploy.bundle.render import VERIFY, render
from trt_layermerge.deploy.machine import Machine
from trt_layermerge.deploy.sidecar import check_engine
from trt_layermerge.errors import (
    CorruptInputError,
    DeviceError,
    LayerMergeError,
    UntrustedInputError,
    UsageError,
)

COMMON = {"README.md", "expected.npz", "manifest.json", "recipe.yaml", "verify.py"}
SERVERS = TARGETS[1:]


@pytest.fixture(scope="module")
def full():
    """Everything that a bundle can hold, ready for every target."""
    given = with_plan(contents(normalise=True, softmax=True))
    expected = {**given.samples.outputs, "int8": given.samples.outputs["fp16"]}
    return replace(
        given,
        models={**given.models, "int8": b"quantised, rest fp16"},
        portable=b"quantised, rest fp32",
        samples=replace(given.samples, outputs=expected),
        calibration='{"scales": {}}\n',
        latency={
            "fp16": {"original_ms": 3.0, "merged_ms": 1.5, "speedup": 2.0, "device": "Orin"},
            "int8": {"original_ms": 2.0, "merged_ms": 1.6, "speedup": 1.25, "device": "Orin"},
        },
    )


@pytest.fixture
def bundle(full, tmp_path):
    path = tmp_path / "plain"
    write_bundle(path, render(full, "plain"))
    return path


def test_plain_has_everything_side_by_side(full):
    files = render(full, "plain")
    assert files.keys() == COMMON | {
        "calibration.json",
        "labels.txt",
        "model.fp16.json",
        "model.fp16.onnx",
        "model.fp16.plan",
        "onnx/model.fp32.onnx",
        "onnx/model.int8.onnx",
        "onnx/model.int8.portable.onnx",
    }
    assert files["model.fp16.plan"] == PLAN  # raw: nothing stands before it
    assert files["model.fp16.onnx"] == full.models["fp16"]
    assert files["recipe.yaml"] == b"seed: 7\n"
    assert files["labels.txt"].decode().splitlines() == list(LABELS)


@pytest.mark.parametrize("target", TARGETS)
def test_the_manifest_has_the_hash_of_every_other_file(full, target):
    files = render(full, target)
    body = json.loads(files.pop("manifest.json"))
    assert body["files"] == {name: sha256_bytes(data) for name, data in files.items()}
    assert set(body["roles"].values()) <= files.keys()
    assert (body["schema"], body["target"]) == ("trt-layermerge/bundle@1", target)
    assert (body["precision"], body["tolerance"]) == ("fp16", 1e-2)
    assert body["accuracy"] == {"original": 0.9, "fp32": 0.88, "fp16": 0.87}
    assert render(full, target) == {**files, "manifest.json": render(full, target)["manifest.json"]}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("target", TARGETS)
def test_what_is_written_is_read(full, target, precision, tmp_path):
    given = with_plan(replace(full, precision=precision))
    write_bundle(tmp_path / "b", render(given, target))
    found_target, found = read_bundle(tmp_path / "b")
    assert found_target == target
    np.testing.assert_array_equal(found.samples.inputs, given.samples.inputs)
    assert found.samples.outputs.keys() == given.samples.outputs.keys()
    for name, arrays in given.samples.outputs.items():
        np.testing.assert_array_equal(found.samples.outputs[name], arrays)
    assert replace(found, samples=given.samples) == given
    assert render(found, target) == render(given, target)


def test_several_inputs_and_outputs_are_read_as_written(tmp_path):
    given = with_plan(several())
    write_bundle(tmp_path / "b", render(given, "plain"))
    _, found = read_bundle(tmp_path / "b")
    for wanted, arrays in (
        (given.samples.inputs, found.samples.inputs),
        (given.samples.outputs["fp32"], found.samples.outputs["fp32"]),
    ):
        for expected, array in zip(wanted, arrays, strict=True):
            np.testing.assert_array_equal(array, expected)
            assert array.dtype == expected.dtype
    assert replace(found, samples=given.samples) == given
    text = (tmp_path / "b" / "README.md").read_text()
    assert "| input | `numbers`, int64, (1, 2): numbers |" in text
    assert "| output | `kind`, float32, (1, 3): logits |" in text
    assert "| output | `best`, int64, (1): whole numbers |" in text


def test_int8_runs_its_own_model_in_onnx_runtime(full):
    """TensorRT's has a float16 fallback, which a CPU does not run as such."""
    files = render(with_plan(replace(full, precision="int8")), "plain")
    roles = json.loads(files["manifest.json"])["roles"]
    assert files[roles["onnx"]] == b"quantised, rest fp16"
    assert files[roles["onnxruntime"]] == files[roles["portable"]] == b"quantised, rest fp32"
    roles = json.loads(render(full, "plain")["manifest.json"])["roles"]
    assert roles["onnx"] == roles["onnxruntime"]


def test_the_engine_of_a_bundle_has_its_sidecar_beside_it(bundle):
    sidecar = check_engine(bundle / "model.fp16.plan")
    assert sidecar.machine == ORIN
    assert sidecar.origin.onnx_sha256 == sha256_bytes((bundle / "model.fp16.onnx").read_bytes())


@pytest.mark.parametrize("target", SERVERS)
def test_servers_do_not_find_what_they_cannot_load(full, target):
    """An engine of TensorRT-RTX, and none at all."""
    rtx = render(with_plan(full, library="tensorrt_rtx", machine=Machine()), target)
    assert [name.rsplit("/")[-1] for name in rtx if name.endswith(".plan")] == ["model.rtx.plan"]
    none = render(replace(full, engine=None, why_no_engine="no TensorRT here"), target)
    assert not [name for name in none if name.endswith(".plan")]
    for files in (rtx, none):
        assert b"trt-layermerge rebuild" in files["README.md"].replace(b"\n", b" ")
        configs = [data for name, data in files.items() if name.endswith((".pbtxt", "infer.txt"))]
        assert not any(b"plan" in data.replace(b"tensorrt_plan", b"") for data in configs)
    assert "| engine | none: no TensorRT here |" in none["README.md"].decode()


@pytest.mark.parametrize("target", TARGETS)
def test_the_readme_says_what_it_is_and_what_nobody_tried(full, target):
    text = render(full, target)["README.md"].decode()
    assert "87.00% on the test images, at fp16 in ONNX Runtime; the original has 90.00%" in text
    assert "1.5 ms, 2.00 times as fast as the original, at fp16 on Orin; without what was" in text
    assert "RGB from 0 to 255" in text and "probabilities" in text
    assert ("has not loaded it" in text) == (target != "plain")
    plain = [line for line in text.splitlines() if not line.startswith(("|", "tritonserver"))]
    assert max(map(len, plain)) <= 100


@pytest.mark.parametrize(
    ("precision", "accuracy", "latency"),
    [
        ("fp32", "88.00% on the test images, at fp32", "not measured at fp32"),
        ("int8", "not measured at int8", "1.6 ms, 1.25 times as fast as the original, at int8"),
    ],
)
def test_the_readme_tells_the_figures_of_what_is_bundled(full, precision, accuracy, latency):
    rows = dict(
        line.strip("| ").split(" | ")
        for line in render(replace(full, precision=precision), "plain")["README.md"]
        .decode()
        .splitlines()
        if line.startswith(("| accuracy", "| latency"))
    )
    assert rows["accuracy"].startswith(accuracy)
    assert rows["latency"].startswith(latency)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_the_readmes_program_classifies_a_photograph(target, normalise, tmp_path):
    baked = {"normalise": normalise, "softmax": normalise or target == "deepstream"}
    given = contents(preprocess=UNIFORM, **baked)
    write_bundle(tmp_path / "bundle", render(given, target))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "bundle" / "photo.jpg", quality=100, subsampling=0)
    seen = np.asarray(Image.open(tmp_path / "bundle" / "photo.jpg"))
    text = (tmp_path / "bundle" / "README.md").read_text()
    program = text.split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path / "bundle",
        capture_output=True,
        text=True,
        check=True,
    )
    raw = seen.transpose(2, 0, 1)[None].astype(np.float32)
    images = raw if normalise else given.preprocess(seen[None])
    (answer,) = run(given.models[given.precision], images)
    best = int(answer.argmax())
    *named, value = done.stdout.split()
    assert " ".join(named) == (LABELS[best] if target == "plain" else str(best))
    assert float(value) == pytest.approx(float(answer[best]), abs=1e-3)


def test_a_name_must_be_a_plain_one(full):
    for name in ("", "../x", "a/b", ".hidden", "a b"):
        with pytest.raises(UsageError, match="cannot be the name"):
            replace(full, name=name)


def test_a_precision_without_a_network_is_refused(full):
    with pytest.raises(UsageError, match=r"no int8 network, only fp32, fp16.*--precision"):
        contents(precision="int8")


@pytest.mark.parametrize("target", ["plain", "triton", "isaac-ros"])
def test_labels_of_two_lines_are_refused(full, target):
    with pytest.raises(UsageError, match=r"'a\\nb' holds.*rename the class"):
        render(replace(full, labels=("a\nb",)), target)


def test_unknown_labels_leave_no_file(full):
    for target in TARGETS:
        files = render(replace(full, labels=None), target)
        assert not [name for name in files if "labels" in name]
        assert not any(b"labels.txt" in data for name, data in files.items() if "config" in name)


def test_a_new_bundle_replaces_the_old_one_whole(full, bundle):
    new = render(replace(full, precision="fp32", engine=None), "plain")
    write_bundle(bundle, new)
    assert {p.name for p in bundle.parent.iterdir()} == {"plain"}
    assert everything(bundle) == new
    assert read_bundle(bundle)[1].precision == "fp32"


def everything(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_others_have_put_into_a_bundle_stays(full, bundle):
    new = render(replace(full, precision="fp32", engine=None), "plain")
    (bundle / "models" / "theirs").mkdir(parents=True)
    (bundle / "models" / "theirs" / "model.plan").write_text("another network")
    (bundle / "model.fp32.onnx").write_text("in our way")
    (bundle / "link").symlink_to("nowhere")
    write_bundle(bundle, new)
    assert everything(bundle) == {**new, "models/theirs/model.plan": b"another network"}
    assert (bundle / "link").is_symlink()
    read_bundle(bundle)


def test_what_a_damaged_manifest_cannot_tell_from_ours_goes(full, bundle):
    """Else an old engine could stay where a server looks for one."""
    (bundle / "manifest.json").write_text("{")
    new = render(replace(full, precision="fp32", engine=None), "plain")
    write_bundle(bundle, new)
    assert everything(bundle) == new


def test_a_failed_write_leaves_the_old_bundle(full, bundle, monkeypatch):
    before = render(full, "plain")
    real = folder_module.write_bytes

    def full_disk(path, data):
        if path.name == "recipe.yaml":
            raise DeviceError("disk full")
        real(path, data)

    monkeypatch.setattr(folder_module, "write_bytes", full_disk)
    with pytest.raises(DeviceError, match="disk full"):
        write_bundle(bundle, render(replace(full, precision="fp32", engine=None), "plain"))
    assert {p.name for p in bundle.parent.iterdir()} == {"plain"}
    assert everything(bundle) == before


def test_what_a_killed_process_left_is_cleared(full, bundle):
    gone = subprocess.Popen(["true"])
    gone.wait()
    for what in ("new", "old"):
        left = bundle.parent / f".plain.trt-layermerge-{what}-{gone.pid}"
        left.mkdir()
        (left / "half").write_text("written")
    write_bundle(bundle, render(full, "plain"))
    assert {p.name for p in bundle.parent.iterdir()} == {"plain"}


def test_what_a_killed_process_had_moved_away_comes_back(full, bundle):
    """With what others have put into it; a process that is running keeps its own."""
    (bundle / "theirs").write_text("1")
    gone = subprocess.Popen(["true"])
    gone.wait()
    bundle.rename(bundle.parent / f".plain.trt-layermerge-old-{gone.pid}")
    running = bundle.parent / f".plain.trt-layermerge-new-{os.getppid()}"
    running.mkdir()
    write_bundle(bundle, render(full, "plain"))
    assert (bundle / "theirs").read_text() == "1"
    assert {p.name for p in bundle.parent.iterdir()} == {"plain", running.name}


@pytest.mark.parametrize("name", ["plain", "[a-z]*", "*"])
def test_folders_of_others_beside_a_bundle_stay(full, tmp_path, name):
    others = [".plain.bak", ".plain.trt-layermerge-new-x", f".{name}.d", ".aplain.old"]
    for other in others:
        (tmp_path / other).mkdir()
        (tmp_path / other / "dear").write_text("1")
    for _ in range(2):
        write_bundle(tmp_path / name, render(full, "plain"))
    assert {p.name for p in tmp_path.iterdir()} == {name, *others}
    assert all((tmp_path / other / "dear").read_text() == "1" for other in others)


def test_a_bundle_is_replaced_where_it_is(full, bundle, monkeypatch):
    """By ``.`` from within, and through a link, which stays one."""
    new = render(replace(full, precision="fp32", engine=None), "plain")
    (bundle.parent / "link").symlink_to("plain")
    write_bundle(bundle.parent / "link", new)
    assert everything(bundle) == new
    monkeypatch.chdir(bundle)
    write_bundle(Path("."), render(full, "plain"))
    monkeypatch.chdir(bundle.parent)
    assert everything(bundle) == render(full, "plain")
    assert (bundle.parent / "link").is_symlink()
    assert {p.name for p in bundle.parent.iterdir()} == {"plain", "link"}


def test_no_permission_is_one_paragraph(full, tmp_path):
    (tmp_path / "deploy").write_text("a file")
    with pytest.raises(DeviceError, match="cannot write the bundle"):
        write_bundle(tmp_path / "deploy" / "plain", render(full, "plain"))


def test_every_changed_file_is_noticed(bundle):
    names = [n for n in json.loads((bundle / "manifest.json").read_text())["files"]]
    assert len(names) == 12
    for name in names:
        path = bundle / name
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        kind = UntrustedInputError if name.endswith(".plan") else CorruptInputError
        with pytest.raises(kind, match="packaged"):
            read_bundle(bundle)
        path.unlink()
        with pytest.raises(CorruptInputError, match="cannot be read"):
            read_bundle(bundle)
        path.write_bytes(good)
    read_bundle(bundle)


def test_an_engine_that_is_not_its_sidecars_is_refused_though_the_hash_is_right(bundle):
    (bundle / "model.fp16.plan").write_bytes(b"another engine")
    change_manifest(
        bundle,
        lambda body: body["files"].update({"model.fp16.plan": sha256_bytes(b"another engine")}),
    )
    with pytest.raises(UntrustedInputError, match="describes another engine"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "change",
    [{"network": "original"}, {"precision": "fp32"}, {"origin": {"weights_sha256": "c" * 64}}],
)
def test_an_engine_of_another_network_is_refused_though_it_is_its_sidecars(bundle, change):
    name = "model.fp16.json"
    body = json.loads((bundle / name).read_text())
    origin = {**body["origin"], **change.pop("origin", {})}
    text = json.dumps({**body, "origin": origin, **change}).encode()
    (bundle / name).write_bytes(text)
    change_manifest(bundle, lambda body: body["files"].update({name: sha256_bytes(text)}))
    with pytest.raises(UntrustedInputError, match="describes another engine"):
        read_bundle(bundle)
    done = subprocess.run([sys.executable, bundle / VERIFY], capture_output=True, text=True)
    assert done.returncode == 7 and "describes another engine" in done.stderr


@pytest.mark.parametrize(
    ("field", "value"), [("tolerance", 1e9), ("seed", 8), ("labels", ["a", "b", "c"])]
)
def test_a_manifest_that_was_changed_is_refused(bundle, field, value):
    body = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**body, field: value}))
    with pytest.raises(CorruptInputError, match="its hash is another one"):
        read_bundle(bundle)
    done = subprocess.run([sys.executable, bundle / VERIFY], capture_output=True, text=True)
    assert done.returncode == 7 and "manifest.json was changed" in done.stderr


@pytest.mark.parametrize("value", [1e9, 0, -1, float("nan")])
def test_no_manifest_makes_anything_pass(bundle, value):
    change_manifest(bundle, lambda body: body.update(tolerance=value))
    with pytest.raises(CorruptInputError, match=r"manifest\.json is damaged"):
        read_bundle(bundle)
    done = subprocess.run([sys.executable, bundle / VERIFY], capture_output=True, text=True)
    assert done.returncode == 7 and "manifest.json allows a difference of" in done.stderr


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../b"])
def test_a_manifest_reaches_nothing_outside(bundle, name):
    change_manifest(bundle, lambda body: body["files"].update({name: "0" * 64}))
    with pytest.raises(CorruptInputError, match="outside the bundle"):
        read_bundle(bundle)
    done = subprocess.run([sys.executable, bundle / VERIFY], capture_output=True, text=True)
    assert done.returncode == 7 and f"{name} cannot be read (there is no such" in done.stderr


def test_damaged_manifests_never_end_in_a_traceback(bundle):
    """Every field gone, or of another type; every 50th truncation; 300 seeded mutations."""
    path = bundle / "manifest.json"
    good = path.read_text()
    body = json.loads(good)
    bad = [good[:n] for n in range(0, len(good) - 2, 50)]
    for field in body:
        bad += [json.dumps({**body, field: value}) for value in (None, 5, "x", [1], {"y": 2})]
        bad.append(json.dumps({k: v for k, v in body.items() if k != field}))
    rng = np.random.default_rng(0)
    for position, sign in zip(
        rng.integers(0, len(good), 300), rng.integers(32, 127, 300), strict=True
    ):
        bad.append(good[:position] + chr(sign) + good[position + 1 :])
    refused = 0
    for text in bad:
        with contextlib.suppress(ValueError, TypeError):  # as damaged, with its hash right again
            text = signed(json.loads(text))
        path.write_text(text)
        try:
            read_bundle(bundle)
        except LayerMergeError as error:
            assert isinstance(error, (CorruptInputError, UsageError)), error
            refused += 1
    assert refused > len(bad) / 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "trt-layermerge/bundle@0"}'])
def test_a_damaged_manifest_says_how_to_get_the_bundle_again(bundle, text):
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(CorruptInputError, match=r"damaged.*take the bundle again") as caught:
        read_bundle(bundle)
    assert "delete" not in str(caught.value)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(UsageError, match="is no bundle"):
        read_bundle(tmp_path)


def test_a_part_that_is_a_pipe_is_refused_and_not_waited_for(bundle):
    (bundle / "recipe.yaml").unlink()
    os.mkfifo(bundle / "recipe.yaml")
    with pytest.raises(CorruptInputError, match=r"cannot be read \(it is a pipe"):
        read_bundle(bundle)
