"""Timing in a child process: one network breaks it, and costs its own entry alone."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import onnx
import pytest

from tests.measure import troubled
from trt_layermerge.backends import get_backend
from trt_layermerge.cli.main import main
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.errors import DeviceError, StickyDeviceError, UsageError
from trt_layermerge.measure import apart
from trt_layermerge.measure.apart import Apart
from trt_layermerge.measure.meter import BackendMeter, Beside, Failed
from trt_layermerge.measure.timing import Turns
from trt_layermerge.session.networks import Networks

CAUSES = {
    "open": "SIGABRT",
    "abort": "SIGABRT",
    "exit": "ended with code 3",
    "hang": "took longer than 1 s",
    "memory": "MemoryError",
    "odd": "KeyError: 'odd'",
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes a second of silence for a hang."""
    monkeypatch.setattr(apart, "HANG_SECONDS", 1.0)


def meter() -> BackendMeter:
    return BackendMeter(get_backend("onnxruntime"), partial(Apart, "onnxruntime", {}))


@pytest.mark.parametrize(("trouble", "cause"), CAUSES.items())
def test_a_network_that_breaks_its_process_spares_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, cause: str
) -> None:
    troubled.install(tmp_path / "site", monkeypatch, {"broken": trouble})
    names = ("first", "broken", "last")
    outcomes = meter().networks(troubled.network("o"), [*map(troubled.network, names)], 3)
    first, broken, last = outcomes
    assert isinstance(first, Beside) and isinstance(last, Beside)
    assert 0 < first.ms < 10 and first.builds[0][0].rounds == 3
    assert isinstance(broken, Failed) and cause in broken.error


def test_an_original_that_breaks_its_process_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    troubled.install(tmp_path / "site", monkeypatch, {"broken": "abort"})
    with pytest.raises(DeviceError, match="SIGABRT"):
        meter().networks(troubled.network("broken"), [troubled.network("a")], 3)


def test_a_process_that_does_not_start_is_no_fault_of_a_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StickyDeviceError, match="does not start"):
        meter().networks(troubled.network("o"), [troubled.network("a")], 3)


def test_a_library_that_is_not_there_is_told() -> None:
    with pytest.raises(UsageError, match="no backend 'nothing'"), Apart("nothing", {}) as timer:
        timer([troubled.network("o")], Turns(rounds=3, burst_ms=0))


def test_slow_networks_that_are_alive_are_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the patience in all, a fifth of it at a time."""
    troubled.install(tmp_path / "site", monkeypatch, {"slow": "slow"})
    monkeypatch.setattr(apart, "HANG_SECONDS", 2.0)
    with Apart("onnxruntime", {}) as timer:
        started = time.monotonic()
        (timing,) = timer([troubled.network("slow")], Turns(rounds=6, burst_ms=0))
        assert time.monotonic() - started > 2.4
    assert timing.rounds == 6


def test_the_child_goes_when_its_parent_does_and_when_it_is_done() -> None:
    with Apart("onnxruntime", {}) as timer:
        timer([troubled.network("o")], Turns(rounds=3, burst_ms=0))
        child = timer._child
        assert child is not None
        pid = child._process.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    script = (
        "import os, signal\n"
        "from tests.measure import troubled\n"
        "from trt_layermerge.measure.apart import Apart\n"
        "from trt_layermerge.measure.timing import Turns\n"
        "with Apart('onnxruntime', {}) as timer:\n"
        "    timer([troubled.network('o')], Turns(3, 0))\n"
        "    print(timer._child._process.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    until = time.monotonic() + 5
    while Path(f"/proc/{int(done.stdout)}").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path(f"/proc/{int(done.stdout)}").exists()


def broken_specs(project: Path) -> list[str]:
    """Returns names of specs that candidates of the tiny network need."""
    table = LatencyTable.load(project / "runs" / "tiny" / "latency_bare.jsonl")
    return [str(spec) for spec, *_ in table.entries if "k5x5" in str(spec)]


def test_a_run_goes_on_whatever_its_candidates_do(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At the command line: blocks, and then whole networks, that break what times them."""
    names = broken_specs(finished)[:3]
    specs = dict(zip(names, ("abort", "hang", "memory"), strict=True))
    troubled.install(tmp_path / "site", monkeypatch, {**specs, "whole-broken": "abort"})
    made, right = [], Networks.plan_onnx

    def plan_onnx(self: Networks, plan: MergePlan) -> bytes:
        model = right(self, plan)
        made.append(plan)
        if len(made) != 3:
            return model
        parsed = onnx.load_model_from_string(model)
        parsed.graph.name = "whole-broken"
        return parsed.SerializeToString()

    monkeypatch.setattr(Networks, "plan_onnx", plan_onnx)
    given = ("--backend", "onnxruntime", "--set", "search.race_steps=0", "--speedup", "1.02")
    code = main(["run", str(finished / "tiny.yaml"), "--runs-dir", str(tmp_path), *given])
    err = capsys.readouterr().err
    assert code in (0, 6), err  # microseconds on a busy machine may be no faster at all
    assert "1 of 5 networks could not be measured and are left out" in err
    table = LatencyTable.load(tmp_path / "tiny" / "latency_bare.jsonl")
    errors = {str(spec): entry.error for (spec, *_), entry in table.entries.items() if entry.error}
    assert {name: CAUSES[specs[name]] in error for name, error in errors.items()} == dict.fromkeys(
        names, True
    )
    assert all(math.isfinite(e.ms) for e in table.entries.values() if e.error is None)
    assert (tmp_path / "tiny" / "plan.json").exists() == (code == 0)


def test_the_library_is_timed_apart_from_the_command_itself(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    right = Apart._ready

    def ready(self: Apart) -> object:
        started.append(self.backend)
        return right(self)

    monkeypatch.setattr(Apart, "_ready", ready)
    given = ("--runs-dir", str(tmp_path), "-q")
    recipe = ("--recipe", str(finished / "tiny.yaml"))
    assert main(["latency", "--run", "x", *recipe, "--backend", "torch", *given]) == 0
    assert set(started) == {"torch"}
