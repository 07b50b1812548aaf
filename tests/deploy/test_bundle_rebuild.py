"""A bundle's engine is made again from what the bundle holds; by TensorRT-RTX where it is real."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.deploy.bundles import ORIN, PLAN, contents, with_plan
from trt_layermerge.backends.tensorrt import EngineBuild
from trt_layermerge.core.jsonio import sha256_bytes
from trt_layermerge.deploy.bundle import rebuild as rebuild_module
from trt_layermerge.deploy.bundle.folder import read_bundle, write_bundle
from trt_layermerge.deploy.bundle.rebuild import rebuild
from trt_layermerge.deploy.bundle.render import VERIFY, render
from trt_layermerge.deploy.machine import Machine
from trt_layermerge.errors import (
    CorruptInputError,
    MissingDependencyError,
    UnsupportedModelError,
    UntrustedInputError,
    UsageError,
)

RTX = "tensorrt_rtx"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def real():
    pytest.importorskip(RTX, reason="TensorRT-RTX is not installed")


@pytest.fixture
def plain(tmp_path):
    write_bundle(tmp_path / "plain", render(with_plan(contents()), "plain"))
    return tmp_path / "plain"


def everything(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_engine_for_this_machine_replaces_the_old_one(real, plain):
    before = everything(plain)
    result = rebuild(plain, RTX)
    after = everything(plain)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"model.fp16.plan", "model.fp16.json", "manifest.json", "README.md"}
    assert len(after["model.fp16.plan"]) > 10_000
    sidecar = read_bundle(plain)[1].engine.sidecar
    assert (sidecar.library, sidecar.precision, sidecar.network) == (RTX, "fp16", "merged")
    assert sidecar.origin.onnx_sha256 == sha256_bytes(after["model.fp16.onnx"])
    assert sidecar.origin.recipe == "seed: 7\n"
    assert sidecar.accuracy is None and "accuracy" in sidecar.notes
    assert (result["engine"], result["precision"]) == (f"{RTX} {sidecar.library_version}", "fp16")
    done = subprocess.run([sys.executable, plain / VERIFY], capture_output=True, check=False)
    assert done.returncode == 0


WITHOUT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "onnxruntime", "scipy", "matplotlib"):
            raise ImportError(name + " is blocked in this test")
sys.meta_path.insert(0, Blocker())
from trt_layermerge.cli.main import main
sys.exit(main(["rebuild", sys.argv[1], "--backend", "tensorrt_rtx", "--json"]))
"""


def test_neither_torch_nor_onnx_is_needed(real, plain):
    """As typed on a device, where only the light dependencies are installed."""
    command = [sys.executable, "-c", WITHOUT, str(plain)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["engine"].startswith(RTX)


def test_another_precision_that_the_bundle_holds(real, plain):
    rebuild(plain, RTX, "fp32")
    _, found = read_bundle(plain)
    assert (found.precision, found.engine.sidecar.precision) == ("fp32", "fp32")
    assert (plain / "model.fp32.plan").is_file()
    assert (plain / "onnx" / "model.fp16.onnx").is_file()
    assert not (plain / "model.fp16.plan").exists()
    body = json.loads((plain / "manifest.json").read_text())
    assert (body["precision"], body["tolerance"]) == ("fp32", 1e-3)


def test_a_dynamic_batch_gets_its_profile(real, tmp_path):
    write_bundle(tmp_path / "triton", render(contents(max_batch=8), "triton"))
    rebuild(tmp_path / "triton", RTX)
    sidecar = read_bundle(tmp_path / "triton")[1].engine.sidecar
    assert sidecar.inputs == {"input": (-1, 3, 8, 6)}
    assert sidecar.profile == {"input": ((1, 3, 8, 6), (1, 3, 8, 6), (8, 3, 8, 6))}


def test_what_the_server_cannot_load_is_told(real, tmp_path):
    write_bundle(tmp_path / "triton", render(contents(), "triton"))
    note = rebuild(tmp_path / "triton", RTX)["note"]
    assert note.startswith("the engine is tensorrt_rtx's, which triton cannot load")
    assert "rebuild BUNDLE --backend tensorrt" in note


def test_a_baked_graph_builds(real, tmp_path):
    given = contents(normalise=True, softmax=True)
    write_bundle(tmp_path / "b", render(given, "deepstream"))
    rebuild(tmp_path / "b", RTX)
    assert list(read_bundle(tmp_path / "b")[1].engine.sidecar.outputs) == ["prob"]


def test_tensorrt_on_the_server_makes_the_entry_loadable(tmp_path, monkeypatch):
    """The library and the machine are fakes."""
    built = []

    def build(model, precision, *, api, options):
        built.append((sha256_bytes(model), precision, api, options.tf32))
        return EngineBuild(PLAN, 1.0, "tensorrt", "10.3.0", (), precision, {}, {}, {})

    given = with_plan(contents(build={"engine": RTX, "tf32": True}), library=RTX, machine=Machine())
    write_bundle(tmp_path / "t", render(given, "triton"))
    monkeypatch.setattr(rebuild_module, "build_engine", build)
    monkeypatch.setattr(rebuild_module, "this_machine", lambda: ORIN)
    monkeypatch.setattr("trt_layermerge.deploy.bundle.rebuild.load_api", lambda name: name)
    result = rebuild(tmp_path / "t", "tensorrt")
    assert built == [(sha256_bytes(given.models["fp16"]), "fp16", "tensorrt", True)]
    assert (tmp_path / "t/models/net/1/model_cc87.plan").read_bytes() == PLAN
    assert not (tmp_path / "t/models/net/1/model.rtx.plan").exists()
    assert "cc_model_filenames" in (tmp_path / "t/models/net/config.pbtxt").read_text()
    assert result["note"] is None
    assert result["details"] == {
        "gpu": "Orin (nvgpu)",
        "why_no_engine": None,
        "loadable": True,
        "baked": {"normalise": False, "softmax": False},
    }


@pytest.mark.parametrize(
    ("recipe", "asked", "library"),
    [
        ("auto", None, None),
        ("none", None, None),
        (RTX, None, RTX),
        ("auto", "tensorrt", "tensorrt"),
        (RTX, "tensorrt", "tensorrt"),
    ],
)
def test_the_library_is_what_was_asked_for_else_the_recipes(
    tmp_path, monkeypatch, recipe, asked, library
):
    wanted = []

    def load(name):
        wanted.append(name)
        raise MissingDependencyError("tensorrt", "building engines", "tensorrt")

    monkeypatch.setattr("trt_layermerge.deploy.bundle.rebuild.load_api", load)
    write_bundle(tmp_path / "b", render(contents(build={"engine": recipe}), "plain"))
    before = everything(tmp_path / "b")
    with pytest.raises(MissingDependencyError):
        rebuild(tmp_path / "b", asked)
    assert wanted == [library]
    assert everything(tmp_path / "b") == before


@pytest.mark.parametrize("name", ["evilmod", "evilmod.inner", "os"])
def test_a_manifest_names_no_module_to_import(tmp_path, monkeypatch, name):
    (tmp_path / "evilmod.py").write_text("raise SystemExit('was executed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    write_bundle(tmp_path / "b", render(contents(build={"engine": name}), "plain"))
    with pytest.raises(CorruptInputError, match=f"names '{name}', which builds no engines"):
        rebuild(tmp_path / "b")


def test_a_precision_that_the_bundle_does_not_hold(plain):
    with pytest.raises(UsageError, match="no int8 network, only fp32, fp16"):
        rebuild(plain, RTX, "int8")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.fp16.onnx", CorruptInputError),
        ("model.fp16.plan", UntrustedInputError),
        ("recipe.yaml", CorruptInputError),
    ],
)
def test_nothing_is_built_from_what_was_changed(plain, name, kind):
    (plain / name).write_bytes((plain / name).read_bytes() + b"!")
    before = everything(plain)
    with pytest.raises(kind):
        rebuild(plain, RTX)
    assert everything(plain) == before


def test_a_network_that_cannot_be_built_leaves_the_bundle(real, tmp_path):
    """Its hash is right: somebody packaged a graph that the library does not know."""
    given = contents()
    odd = given.models["fp16"].replace(b"GlobalAveragePool", b"GlobalAveragePoof")
    bad = replace(given, models={**given.models, "fp16": odd})
    write_bundle(tmp_path / "b", render(bad, "plain"))
    before = everything(tmp_path / "b")
    with pytest.raises(UnsupportedModelError, match="GlobalAveragePoof"):
        rebuild(tmp_path / "b", RTX)
    assert everything(tmp_path / "b") == before


def test_options_of_a_strange_bundle_are_refused(real, tmp_path):
    write_bundle(tmp_path / "b", render(contents(build={"optimization_level": 9}), "plain"))
    with pytest.raises(UsageError, match="no optimisation level 9"):
        rebuild(tmp_path / "b", RTX)
