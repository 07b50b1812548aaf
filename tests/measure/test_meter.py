"""One contract of every meter: in this process, in a child process, and over ssh.

All three run the agent's own fake, whose latencies follow from the bytes of a model, so they have
to agree on every figure.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent import trouble
from tests.gpus import NO_GPU
from tests.measure import fake_ssh
from tests.measure.answering import Answering
from trt_layermerge.backends import Runner
from trt_layermerge.core.conv import ConvSpec, Spec
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.jsonio import sha256_bytes
from trt_layermerge.errors import CorruptInputError, DeviceError, StickyDeviceError, UsageError
from trt_layermerge.measure import conditions
from trt_layermerge.measure.agent.fake import FakeBackend
from trt_layermerge.measure.agent.sources import Reading
from trt_layermerge.measure.agent.zipapp import write_zipapp
from trt_layermerge.measure.isolated import AgentMeter, run_here
from trt_layermerge.measure.meter import BackendMeter, Beside, Failed, Meter
from trt_layermerge.measure.spec_model import spec_model
from trt_layermerge.measure.ssh import SshAgent
from trt_layermerge.measure.table import Progress, SpecRequest
from trt_layermerge.measure.timing import Timing

SPECS: list[Spec] = [
    ConvSpec(4, 4, (k, k), (1, 1), (k // 2,) * 4, (1, 1), 1, size, size, "relu")
    for k in (1, 3)
    for size in (4, 5, 6)
]


def request(folder: Path, specs: list[Spec] | None = None, rounds: int = 3) -> SpecRequest:
    return SpecRequest(
        SPECS if specs is None else specs, "fp32", 1, rounds, folder / "store", lambda: b"original"
    )


def expected_ms(model: bytes) -> float:
    """Returns what the agent's fake says of a model, worked out anew."""
    return 0.1 + zlib.crc32(model) % 1000 / 1000


def troubled(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has workers that are started from now on follow a script."""
    for name, value in trouble.environment(script).items():
        monkeypatch.setenv(name, value)


def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Meter:
    scripted = trouble.SCRIPT in os.environ
    return BackendMeter(trouble.TroubledBackend() if scripted else FakeBackend())


def child(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Meter:
    return AgentMeter("fake", folder / "jobs", run_here)


def ssh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Meter:
    fake_ssh.install(folder, monkeypatch)
    agent = SshAgent("jetson", write_zipapp, lambda text: None)
    return AgentMeter("fake", folder / "jobs", agent)


Make = Callable[[Path, pytest.MonkeyPatch], Meter]
METERS = pytest.mark.parametrize("make", [here, child, ssh])


@METERS
def test_every_meter_keeps_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    meter = make(tmp_path, monkeypatch)
    assert meter.device() == DeviceInfo("fake", "1", "fake device", "no clock")

    steps: list[tuple[int, int]] = []
    table = meter.specs(
        request(tmp_path, [*SPECS, SPECS[0]]), lambda done, total: steps.append((done, total))
    )
    assert table.device == meter.device() and table.overhead_ms == 0
    assert [key for key in table.entries] == [(spec, "fp32", 1) for spec in SPECS]
    assert [e.ms for e in table.entries.values()] == pytest.approx(
        [expected_ms(spec_model(spec, "fp32", 1)) for spec in SPECS], rel=1e-6
    )
    assert all(e.error is None and e.samples >= 3 for e in table.entries.values())
    assert steps and steps[-1][0] == steps[-1][1]

    found = meter.networks(b"original", [b"one", b"two"], 4)
    for outcome, model in zip(found, (b"one", b"two"), strict=True):
        assert isinstance(outcome, Beside)
        assert outcome.original_ms == pytest.approx(expected_ms(b"original"), rel=1e-6)
        assert outcome.ms == pytest.approx(expected_ms(model), rel=1e-6)
        assert outcome.ratio == pytest.approx(expected_ms(b"original") / expected_ms(model))
        assert [timing.rounds for pair in outcome.builds for timing in pair] == [4, 4]


@pytest.mark.parametrize("make", [here, child])
def test_what_the_store_has_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    meter = make(tmp_path, monkeypatch)
    first = meter.specs(request(tmp_path, SPECS[:4]))
    # A model that is opened from now on kills its process, or ends this one.
    (tmp_path / "script").write_text(
        json.dumps(
            {"models": {sha256_bytes(spec_model(s, "fp32", 1)): ["kill"] * 9 for s in SPECS[:4]}}
        )
    )
    troubled(tmp_path / "script", monkeypatch)
    again = make(tmp_path / "other", monkeypatch).specs(request(tmp_path))
    assert [again.entries[s, "fp32", 1] for s in SPECS[:4]] == list(first.entries.values())
    assert all(math.isfinite(e.ms) for e in again.entries.values())


def test_figures_of_another_way_to_measure_are_not_taken(tmp_path: Path) -> None:
    BackendMeter(FakeBackend()).specs(request(tmp_path))
    agent = Answering(device=FakeBackend().device(), facts={})
    AgentMeter("fake", tmp_path / "jobs", agent).specs(
        SpecRequest(
            SPECS, "fp32", 1, 3, tmp_path / "store", lambda: spec_model(SPECS[0], "fp32", 1)
        )
    )
    assert set(agent.asked) == {"sentinel", *map(str, SPECS[1:])}


def test_what_crashes_costs_one_entry_with_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    troubles = {SPECS[1]: "kill", SPECS[2]: "error", SPECS[4]: "memory", SPECS[5]: "sticky"}
    tries = {"kill": 2, "sticky": 2, "error": 1, "memory": 1}  # a lost process is tried again
    models = {sha256_bytes(spec_model(s, "fp32", 1)): [t] * tries[t] for s, t in troubles.items()}
    models[sha256_bytes(b"bad plan")] = ["exit", "exit"]
    (tmp_path / "script").write_text(json.dumps({"models": models}))
    troubled(tmp_path / "script", monkeypatch)
    meter = child(tmp_path, monkeypatch)
    table = meter.specs(request(tmp_path))
    errors = {s: table.entries[s, "fp32", 1].error for s in SPECS}
    assert {s for s, error in errors.items() if error is not None} == set(troubles)
    for spec, words in zip(
        troubles, ("SIGKILL", "scripted build failed", "out of memory", "illegal"), strict=True
    ):
        assert words in (errors[spec] or "")
        assert table[spec, "fp32", 1] == math.inf
    bad, good = meter.networks(b"original", [b"bad plan", b"good plan"], 3)
    assert isinstance(bad, Failed) and "code 3" in bad.error
    assert isinstance(good, Beside)
    # What failed is not in the store; by now its troubles are over.
    healed = child(tmp_path, monkeypatch).specs(request(tmp_path))
    assert all(e.error is None for e in healed.entries.values())


def test_finalists_are_built_anew_and_their_spread_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = {"models": {}, "drift": {"from": 2, "to": 4, "factor": 1.5}}
    (tmp_path / "script").write_text(json.dumps(script))
    troubled(tmp_path / "script", monkeypatch)
    (outcome,) = child(tmp_path, monkeypatch).networks(b"original", [b"plan"], 3, builds=3)
    assert isinstance(outcome, Beside)
    slow = 1.5 * expected_ms(b"plan")
    ms = [plan.ms for _, plan in outcome.builds]
    assert ms == pytest.approx([expected_ms(b"plan"), slow, expected_ms(b"plan")], rel=1e-6)
    assert outcome.ms == pytest.approx(expected_ms(b"plan"), rel=1e-6)
    assert len(outcome.ratios) == 3


def test_one_unlucky_build_decides_neither_latency_nor_speed_up() -> None:
    steady = Timing((2.0,) * 3, (2.0,))
    builds = [(steady, Timing((ms,) * 3, (ms,))) for ms in (1.0, 1.0, 8.0)]
    beside = Beside(tuple(builds))
    assert (beside.ms, beside.ratio, beside.ratios) == (1.0, 2.0, (2.0, 2.0, 0.25))


class Choosy(FakeBackend):
    """Raises over some networks, whatever the library would."""

    def __init__(self, troubles: dict[bytes, Exception]) -> None:
        super().__init__()
        self.troubles = troubles

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
        if model in self.troubles:
            raise self.troubles[model]
        return super().open(model, seed=seed)


@pytest.mark.parametrize("error", [DeviceError("no tactic"), MemoryError(), TypeError("odd")])
def test_one_network_that_fails_spares_the_others_in_this_process_too(error: Exception) -> None:
    meter = BackendMeter(Choosy({b"bad": error}))
    first, bad, last = meter.networks(b"original", [b"first", b"bad", b"last"], 3)
    assert isinstance(first, Beside) and isinstance(last, Beside)
    assert first.ms == pytest.approx(expected_ms(b"first"), rel=1e-6)
    assert last.original_ms == pytest.approx(expected_ms(b"original"), rel=1e-6)
    assert isinstance(bad, Failed) and (str(error) or "MemoryError") in bad.error


def test_an_original_that_fails_is_no_fault_of_the_others() -> None:
    meter = BackendMeter(Choosy({b"original": MemoryError("all of it")}))
    with pytest.raises(DeviceError, match="MemoryError: all of it"):
        meter.networks(b"original", [b"one", b"two"], 3)
    with pytest.raises(StickyDeviceError, match="gone"):
        BackendMeter(Choosy({b"one": StickyDeviceError("gone")})).networks(b"o", [b"one"], 3)


def test_an_interrupted_table_keeps_what_was_measured(tmp_path: Path) -> None:
    models = [spec_model(spec, "fp32", 1) for spec in SPECS]
    asked = SpecRequest(SPECS, "fp32", 1, 3, tmp_path / "store", lambda: models[0])
    whole = AgentMeter("fake", tmp_path / "a", Answering()).specs(
        SpecRequest(SPECS, "fp32", 1, 3, tmp_path / "other", lambda: models[0])
    )
    agent = Answering(stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        AgentMeter("fake", tmp_path / "jobs", agent).specs(asked)
    assert agent.asked == ["sentinel", *map(str, SPECS[1:4])]
    table = AgentMeter("fake", tmp_path / "jobs", agent).specs(asked)
    assert table == whole
    # The sentinel is the first block here, so it is measured in each of the two folders.
    assert agent.asked[4:] == ["sentinel", *map(str, SPECS[4:])]


def test_interrupted_networks_continue_and_finished_ones_are_measured_anew(tmp_path: Path) -> None:
    models = [spec_model(spec, "fp32", 1) for spec in SPECS[:4]]
    agent = Answering(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        AgentMeter("fake", tmp_path, agent).networks(models[0], models[1:], 3)
    assert len(agent.asked) == 2
    meter = AgentMeter("fake", tmp_path, agent)
    assert len(meter.networks(models[0], models[1:], 3)) == 3
    assert len(agent.asked) == 3
    meter.networks(models[0], models[1:], 3)
    assert len(agent.asked) == 6
    assert not (tmp_path / "networks" / "models").exists()
    assert (tmp_path / "networks" / "results.jsonl").exists()


def test_a_power_mode_has_latencies_of_its_own_in_this_process_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Counting()
    for mode, opened in (("15W", len(SPECS)), ("15W", 0), ("MAXN", len(SPECS))):
        monkeypatch.setattr(conditions, "power_mode", lambda sources, mode=mode: Reading(mode))
        meter = BackendMeter(backend)
        backend.opened = 0
        table = meter.specs(request(tmp_path))
        assert table.device == meter.device()
        assert table.device.settings == f"no clock, power mode {mode}"
        assert backend.opened == opened


class Counting(FakeBackend):
    """Counts the networks that it opens."""

    opened = 0

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
        self.opened += 1
        return super().open(model, seed=seed)


def test_a_device_that_changes_is_told(tmp_path: Path) -> None:
    agent = Answering()
    meter = AgentMeter("fake", tmp_path / "jobs", agent)
    assert meter.device().settings == "no clock, power mode 15W"
    agent.facts = {"power_mode": "MAXN"}
    sentinel = spec_model(SPECS[0], "fp32", 1)
    asked = SpecRequest(SPECS, "fp32", 1, 3, tmp_path / "store", lambda: sentinel)
    with pytest.raises(DeviceError, match="changed while it was measured"):
        meter.specs(asked)
    agent.asked.clear()
    AgentMeter("fake", tmp_path / "jobs", agent).specs(asked)
    assert len(agent.asked) == len(SPECS)  # nothing of the other mode was stored


def test_an_agent_that_answers_too_little_is_told(tmp_path: Path) -> None:
    agent = Answering()

    def lazy(folder: Path, on_progress: Callable[[int, int], None]) -> None:
        agent(folder, on_progress)
        lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
        (folder / "results.jsonl").write_text("".join(lines[:-1]))

    meter = AgentMeter("fake", tmp_path, lazy)
    model = spec_model(SPECS[0], "fp32", 1)
    with pytest.raises(DeviceError, match=r"1 of 1 jobs .* not done"):
        meter.networks(model, [model], 3)


def test_an_agent_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^there is no backend 'nothing'"):
        AgentMeter("nothing", tmp_path, run_here).device()


def test_where_there_is_no_device_another_one_is_thought_of(tmp_path: Path) -> None:
    """Without a driver, or without TensorRT-RTX; where both are there, this proves nothing."""
    if not NO_GPU:
        pytest.skip("there is a GPU here")
    with pytest.raises(DeviceError, match=r"(no CUDA driver|not installed).*--export-jobs DIR$"):
        AgentMeter("tensorrt_rtx", tmp_path, run_here).device()


def test_the_error_of_an_agent_keeps_its_kind(tmp_path: Path) -> None:
    def damaging(folder: Path, on_progress: Progress) -> None:
        for model in (folder / "models").glob("*"):
            model.write_bytes(b"another")
        run_here(folder, on_progress)

    with pytest.raises(CorruptInputError, match=r"is damaged: .*export the jobs again$"):
        AgentMeter("fake", tmp_path, damaging).networks(b"original", [b"one"], 3)


def test_a_backend_that_refuses_everything_says_so(tmp_path: Path) -> None:
    class Refusing(FakeBackend):
        def device(self) -> DeviceInfo:
            raise UsageError("no device")

    with pytest.raises(UsageError, match="no device"):
        BackendMeter(Refusing()).specs(request(tmp_path))
