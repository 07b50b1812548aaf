"""What the worker does with one request, in this process; the process itself is in test_run.py."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.agent import folders
from tests.backends.fake_cuda import FakeCudaRuntime
from tests.backends.fake_engine import FakeEngine, fake_library
from trt_layermerge.backends import Runner
from trt_layermerge.backends.cuda import Cuda
from trt_layermerge.backends.tensorrt_api import FLAVORS
from trt_layermerge.backends.tensorrt_runner import EngineRunner
from trt_layermerge.core.jsonio import sha256_bytes
from trt_layermerge.errors import DeviceError, MissingDependencyError, StickyDeviceError, UsageError
from trt_layermerge.measure.agent.fake import FakeBackend
from trt_layermerge.measure.agent.sources import Answer, Sources
from trt_layermerge.measure.agent.worker import (
    answer_all,
    answer_to,
    open_backend,
    words_of,
)

BARE = Sources(Path("/nowhere"), lambda command: Answer(None, errors="no such command"))


def request(folder: Path, *texts: str) -> dict[str, Any]:
    folders.body(folder, {"a": texts})
    models = [
        {"file": f"models/{text}.onnx", "sha256": sha256_bytes(folders.model(text))}
        for text in texts
    ]
    return {"key": "a", "models": models, "rounds": 4, "burst_ms": 1.0}


def test_an_answer_has_latencies_and_the_device_before_and_after(tmp_path: Path) -> None:
    answer = answer_to(request(tmp_path, "x", "y"), tmp_path, FakeBackend(), BARE)
    assert answer["error"] is None
    x, y = answer["models"]
    assert (len(x["round_ms"]), len(y["round_ms"])) == (4, 4)
    assert set(x["runs_ms"]) != set(y["runs_ms"])
    assert x["method"] == "call"
    assert x["build_s"] >= 0
    reason = "nvidia-smi does not tell: no such command"
    for state in (answer["before"], answer["after"]):
        assert state["power_w"] is None
        assert state["missing"]["power_w"] == reason
    assert answer["seconds"] > 0


def test_builds_that_are_compared_share_no_kernels(tmp_path: Path) -> None:
    """What several jobs build is built without the timing cache, everything else with it."""
    usual, anew = Engines(), Engines()
    asked = request(tmp_path, "x")
    requests = [{**asked, "anew": flag} for flag in (False, True, True, False, True)]
    answers = list(answer_all(requests, tmp_path, usual, anew, BARE))
    assert [answer["error"] for answer in answers] == [None] * 5
    assert (len(usual.runtimes), len(anew.runtimes)) == (2, 3)

    for cache in (tmp_path, None):
        backend = open_backend(flavor_here(), cache)
        assert backend._options.timing_cache == cache  # type: ignore[attr-defined]


def flavor_here() -> str:
    """Returns a TensorRT that is installed, whether it runs or not."""
    found = [name for name in FLAVORS if find_spec(name) is not None]
    if not found:
        pytest.skip("there is no TensorRT here")
    return found[0]


def test_a_fault_is_the_last_answer(tmp_path: Path) -> None:
    broken, whole = Engines((700, 8)), Engines()
    asked = request(tmp_path, "x")
    requests = [{**asked, "anew": flag} for flag in (True, False, True)]
    first, second = answer_all(requests, tmp_path, broken, whole, BARE)
    assert (first["error"], second["sticky"]) == (None, True)


TROUBLE: Mapping[str, tuple[Exception, str]] = {
    "device": (DeviceError("no kernel"), "no kernel"),
    "memory": (MemoryError(), "out of memory; close other programs, or use a smaller batch"),
    "library": (RuntimeError("of a binding"), "RuntimeError: of a binding"),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_a_failure_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    error, words = TROUBLE[name]

    def fail(self: FakeBackend, model: bytes, *, seed: int = 0) -> Runner:
        raise error

    monkeypatch.setattr(FakeBackend, "open", fail)
    answer = answer_to(request(tmp_path, "x"), tmp_path, FakeBackend(), BARE)
    assert (answer["models"], answer["error"]) == (None, words)
    assert not answer.get("sticky")


def test_a_fault_that_ends_the_process_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: FakeBackend, model: bytes, *, seed: int = 0) -> Runner:
        raise StickyDeviceError("illegal address")

    monkeypatch.setattr(FakeBackend, "open", fail)
    answer = answer_to(request(tmp_path, "x"), tmp_path, FakeBackend(), BARE)
    assert (answer["error"], answer["sticky"]) == ("illegal address", True)


class Engines(FakeBackend):
    """Opens every model as an engine on a fake GPU, as the TensorRT backend would."""

    def __init__(self, fault: tuple[int, int] = (0, 0)) -> None:
        super().__init__()
        self.fault = fault
        self.runtimes: list[FakeCudaRuntime] = []

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
        self.runtimes.append(FakeCudaRuntime())
        engine = FakeEngine(self.runtimes[-1])
        engine.fault = self.fault
        cuda = Cuda(engine.runtime, "fake")
        return EngineRunner(fake_library(engine), cuda, b"an engine", seed)


def test_engines_are_timed_as_graphs_and_given_back(tmp_path: Path) -> None:
    backend = Engines()
    answer = answer_to(request(tmp_path, "x", "y"), tmp_path, backend, BARE)
    assert answer["error"] is None
    assert [model["method"] for model in answer["models"]] == ["graph", "graph"]
    assert all(model["enqueue_ms"] is not None for model in answer["models"])
    assert [runtime.held for runtime in backend.runtimes] == [0, 0]


def test_a_fault_of_the_gpu_ends_the_worker(tmp_path: Path) -> None:
    answer = answer_to(request(tmp_path, "x"), tmp_path, Engines((700, 8)), BARE)
    assert answer["sticky"]
    assert "illegal memory access" in answer["error"]


def test_a_model_that_is_not_the_hashed_one_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tmp_path, "x")
    (tmp_path / "models/x.onnx").write_bytes(b"something else")
    monkeypatch.delattr(FakeBackend, "open")
    answer = answer_to(asked, tmp_path, FakeBackend(), BARE)
    assert set(answer) == {"fatal", "code"}
    assert answer["code"] == 7
    assert "has not the hash" in answer["fatal"]


def test_a_missing_package_is_named_as_this_machine_gets_it(tmp_path: Path) -> None:
    """The agent's one file is no package with extras, and on a Jetson pip has no TensorRT."""
    error = MissingDependencyError("tensorrt", "building engines", "tensorrt")
    what = "building engines needs the package 'tensorrt', which is not installed; type: "
    assert words_of(error, BARE) == f"{what}pip install tensorrt"
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("NVIDIA Jetson Orin Nano")
    there = words_of(error, Sources(tmp_path, BARE.ask))
    assert there.startswith(f"{what}sudo apt install nvidia-jetpack")
    assert words_of(DeviceError("no driver"), BARE) == "no driver"


def test_backends_by_name(tmp_path: Path) -> None:
    assert open_backend("fake", tmp_path).device().name == "fake device"
    with pytest.raises(UsageError, match="there is no backend 'nope'"):
        open_backend("nope", tmp_path)
