"""Engines that do not belong here are refused before their code is run, with what to type."""

from dataclasses import replace

import pytest

from trt_layermerge.backends.tensorrt import EngineBuild
from trt_layermerge.backends.tensorrt_api import load_api
from trt_layermerge.deploy.engines import fitting_engine
from trt_layermerge.deploy.machine import Machine
from trt_layermerge.deploy.sidecar import Origin, write_engine
from trt_layermerge.errors import DeviceError, UntrustedInputError

pytest.importorskip("tensorrt_rtx")
HERE = Machine("a GPU", "8.9")


@pytest.fixture
def build(monkeypatch):
    monkeypatch.setattr("trt_layermerge.deploy.engines.this_machine", lambda: HERE)
    version = load_api("tensorrt_rtx").version
    return EngineBuild(b"an engine", 1.0, "tensorrt_rtx", version, (), "fp32", {}, {}, {})


@pytest.fixture
def write(tmp_path):
    origin = Origin("a" * 64, None, {}, None, "", 0)

    def write_in_a_run(build, machine=HERE):
        return write_engine(tmp_path / "mine" / "engines", build, origin, machine)

    return write_in_a_run


def test_an_engine_of_this_machine_is_handed_out(build, write):
    data, api = fitting_engine(write(build))
    assert (data, api.flavor) == (b"an engine", "tensorrt_rtx")


def test_an_engine_without_a_gpu_in_mind_is_handed_out(build, write):
    assert fitting_engine(write(build, Machine()))[0] == b"an engine"


def test_an_engine_of_another_version(build, write):
    plan = write(replace(build, version="0.9"))
    with pytest.raises(
        DeviceError, match=r"one version of TensorRT.*tensorrt_rtx 0\.9.*run mine --runs-dir "
    ):
        fitting_engine(plan)


def test_an_engine_of_another_gpu(build, write):
    plan = write(build, Machine("another GPU", "8.6"))
    words = (
        r"built for another GPU \(compute capability 8\.6\), and here is a GPU.*build --run mine"
    )
    with pytest.raises(DeviceError, match=words):
        fitting_engine(plan)


def test_an_engine_that_was_changed(build, write):
    plan = write(build)
    plan.write_bytes(b"an Engine")
    with pytest.raises(UntrustedInputError, match=r"another engine .*build --run mine.*only for"):
        fitting_engine(plan)
    assert fitting_engine(plan, trust=True)[0] == b"an Engine"
