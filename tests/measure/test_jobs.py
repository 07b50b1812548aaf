"""Folders of jobs as the agent reads them, and its answers as the host reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.errors import CorruptInputError, UsageError
from trt_layermerge.measure.agent.jobs import Protocol, load_manifest, read_model
from trt_layermerge.measure.agent.telemetry import DeviceState, GpuClock
from trt_layermerge.measure.conditions import not_comparable
from trt_layermerge.measure.jobs import (
    Job,
    drift_words,
    read_measurements,
    write_jobs,
)

PROTOCOL = Protocol("fake", rounds=7, burst_ms=1.5, timeout_s=9.0, sentinel_every=3)
HEADER = {
    "schema": "trt-layermerge/measurements@1",
    "manifest": "ab" * 32,
    "device": {"backend": "fake", "backend_version": "1", "name": "far", "settings": ""},
    "facts": {"power_mode": None},
}


def test_the_agent_reads_what_is_written(tmp_path: Path) -> None:
    jobs = [Job("a", (b"one",)), Job("b", (b"original", b"plan"))]
    identity = write_jobs(tmp_path, jobs, PROTOCOL, b"original")
    manifest = load_manifest(tmp_path)
    assert manifest.id == identity
    assert (manifest.backend, manifest.rounds, manifest.burst_ms) == ("fake", 7, 1.5)
    assert (manifest.timeout_s, manifest.sentinel_every) == (9.0, 3)
    read = {
        job.label: [read_model(tmp_path, m) for m in job.models] for job in manifest.jobs.values()
    }
    assert read == {"sentinel": [b"original"], "a": [b"one"], "b": [b"original", b"plan"]}
    assert manifest.sentinel == next(k for k, j in manifest.jobs.items() if j.label == "sentinel")
    assert not any(job.anew for job in manifest.jobs.values())


def test_the_same_content_is_written_and_measured_once(tmp_path: Path) -> None:
    one, same, pair = Job("a", (b"x",)), Job("b", (b"x",)), Job("c", (b"x", b"y"))
    write_jobs(tmp_path, [one, same, pair], PROTOCOL)
    assert len(load_manifest(tmp_path).jobs) == 2 and one.key == same.key != pair.key
    assert sorted(p.read_bytes() for p in (tmp_path / "models").iterdir()) == [b"x", b"y"]


def test_builds_of_the_same_networks_are_jobs_of_their_own(tmp_path: Path) -> None:
    write_jobs(tmp_path, [Job("a", (b"x", b"y"), build) for build in range(3)], PROTOCOL)
    jobs = load_manifest(tmp_path).jobs
    assert len(jobs) == 3 and all(job.anew for job in jobs.values())
    assert len(list((tmp_path / "models").iterdir())) == 2


def test_a_manifest_is_named_after_its_content(tmp_path: Path) -> None:
    base = write_jobs(tmp_path / "1", [Job("a", (b"x",))], PROTOCOL)
    assert write_jobs(tmp_path / "2", [Job("a", (b"x",))], PROTOCOL) == base
    others = [
        write_jobs(tmp_path / "3", [Job("a", (b"z",))], PROTOCOL),
        write_jobs(tmp_path / "4", [Job("a", (b"x",))], Protocol("fake")),
        write_jobs(tmp_path / "5", [Job("a", (b"x",))], PROTOCOL, b"s"),
    ]
    assert len({base, *others}) == 4


def test_jobs_are_taken_one_by_one(tmp_path: Path) -> None:
    def jobs() -> Any:
        for number in range(3):
            assert len(list(tmp_path.glob("models/*"))) == number
            assert not (tmp_path / "manifest.json").exists()
            yield Job("a", (bytes([number]),))

    write_jobs(tmp_path, jobs(), PROTOCOL)
    assert len(load_manifest(tmp_path).jobs) == 3


def row(key: str, ms: Sequence[float] | None, *, sentinel: bool = False, **more: Any) -> Any:
    models = None if ms is None else [{"round_ms": [m, m], "runs_ms": [m]} for m in ms]
    for model in models or ():
        model |= {"build_s": 0.1, "method": "graph"}
    error = "out of memory" if ms is None else None
    base = {"key": key, "models": models, "error": error, "attempts": 1, "seconds": 2.0}
    return {**base, "before": None, "after": None, "sentinel": sentinel, **more}


def answers(path: Path, rows: Sequence[Any], **header: Any) -> Path:
    lines = [json.dumps({**HEADER, **header}), *(json.dumps(r) for r in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_answers_come_back_by_key(tmp_path: Path) -> None:
    path = answers(tmp_path / "r", [row("a", [2.0]), row("b", [3.0, 1.5]), row("c", None)])
    found = read_measurements(path)
    assert (found.manifest, found.drift) == ("ab" * 32, None)
    assert found.missing(["a", "b", "c", "d"]) == ["d"]
    entry = found.answers["a"].entry()
    assert (entry.ms, entry.samples, entry.error) == (2.0, 1, None)
    original, plan = found.answers["b"].timings
    assert (original.ms, plan.ms, plan.method) == (3.0, 1.5, "graph")
    failed = found.answers["c"].entry()
    assert (failed.ms, failed.error) == (math.inf, "out of memory")


def test_what_the_device_was_like_comes_along(tmp_path: Path) -> None:
    def state(mhz: float, **more: Any) -> Any:
        return {"gpu_clock_mhz": mhz, "power_mode": "15W", "missing": {"power_w": "none"}, **more}

    rows = [
        row("a", [2.0, 1.0], before=state(306), after=state(624)),
        row("b", [2.0, 1.0], before=state(620), after=state(612, throttled=True)),
        row("c", None),
    ]
    rows[0]["models"][0]["enqueue_ms"] = 0.25
    facts = {"gpu_clock_range_mhz": [306, 624], "gpu_clock_locked": False}
    found = read_measurements(answers(tmp_path / "r", rows, facts=facts))
    a, b, c = (found.answers[key] for key in "abc")
    assert [timing.enqueue_ms for timing in a.timings] == [0.25, None]
    assert a.after == DeviceState(624, power_mode="15W", missing={"power_w": "none"})
    assert c.before == c.after == DeviceState()
    seen = found.conditions([a, b])
    assert (seen.before, seen.after) == (a.before, b.after)
    assert (seen.clock.value, seen.cores) == (GpuClock(306, (306, 624), False), None)
    told = not_comparable(DeviceInfo("tensorrt", "10.3", "Orin"), seen)
    assert "306 MHz of 306 to 624, not locked" in told[0] and "throttled" in told[1]

    reason = {"missing": {"gpu_clock": "no nvidia-smi"}}
    unknown = read_measurements(answers(tmp_path / "r", [row("a", [1.0])], facts=reason))
    seen = unknown.conditions([unknown.answers["a"]])
    assert (seen.clock.value, seen.clock.reason) == (None, "no nvidia-smi")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_success_counts_before_a_failure_and_the_last_of_several(
    tmp_path: Path, order: tuple[int, int]
) -> None:
    both = [row("a", [2.0]), row("a", None)]
    found = read_measurements(answers(tmp_path / "r", [both[i] for i in order]))
    assert found.answers["a"].entry().ms == 2.0
    found = read_measurements(answers(tmp_path / "r", [row("a", [2.0]), row("a", [4.0])]))
    assert found.answers["a"].entry().ms == 4.0


def test_latencies_are_brought_to_one_clock(tmp_path: Path) -> None:
    rows = [
        row("s", [1.0], sentinel=True),
        row("a", [10.0]),
        row("b", [11.0]),
        row("s", [1.3], sentinel=True),
        row("c", [13.0]),
        row("s", [1.1], sentinel=True),
    ]
    found = read_measurements(answers(tmp_path / "r", rows))
    # The sentinel's median is 1.1 ms; around a, b and c it is 1.1, 1.2 and 1.2 ms.
    expected = {"a": 10.0, "b": 11.0 * 1.1 / 1.2, "c": 13.0 * 1.1 / 1.2, "s": 1.1}
    assert {k: a.entry().ms for k, a in found.answers.items()} == pytest.approx(expected, rel=1e-12)
    assert found.drift == pytest.approx(0.3 / 1.1, rel=1e-12)
    once = read_measurements(answers(tmp_path / "r", rows[:3]))
    assert once.answers["b"].entry().ms == 11.0 and once.drift is None


def test_drift_beyond_the_limit_says_what_to_do() -> None:
    assert drift_words(0.012) == "the sentinel network drifted by 1.2%, which was divided out"
    assert "drifted by 10.0%" in drift_words(0.1) and "sudo jetson_clocks" in drift_words(0.1)


def test_the_power_mode_is_part_of_the_device(tmp_path: Path) -> None:
    def device(settings: str, mode: str | None) -> DeviceInfo:
        body = {**HEADER["device"], "settings": settings}  # type: ignore[dict-item]
        facts = {"power_mode": mode}
        return read_measurements(answers(tmp_path / "r", [], device=body, facts=facts)).device

    assert device("", "15W").settings == "power mode 15W"
    assert device("8 SMs", "15W").settings == "8 SMs, power mode 15W"
    assert device("8 SMs", None).settings == "8 SMs"
    assert device("8 SMs", None).settings == "8 SMs"


GOOD = row("a", [1.0])


@pytest.mark.parametrize(
    "bad",
    [
        {**GOOD, "key": None, "models": []},
        {k: v for k, v in GOOD.items() if k != "sentinel"},
        {k: v for k, v in GOOD.items() if k != "models"},
        row("a", [math.nan]),
        row("a", [-1.0]),
        row("a", [0.0]),
        row("a", [math.inf]),
        row("a", [], sentinel=False),
        {**GOOD, "models": [{"round_ms": [], "runs_ms": [], "method": "graph"}]},
        {**GOOD, "models": [*GOOD["models"], {**GOOD["models"][0], "round_ms": [1.0]}]},
        "text",
        7,
    ],
)
def test_a_damaged_row_is_refused(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(CorruptInputError):
        read_measurements(answers(tmp_path / "r", [GOOD, bad]))


def test_a_half_written_line_is_the_trace_of_an_interruption(tmp_path: Path) -> None:
    path = answers(tmp_path / "r", [GOOD])
    path.write_text(path.read_text() + '{"key": "b", "mod')
    assert list(read_measurements(path).answers) == ["a"]


def test_what_is_no_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        read_measurements(tmp_path / "none")
    for text in ("", "{}\n", json.dumps({**HEADER, "device": 3}) + "\n", "\xff\n"):
        (tmp_path / "r").write_text(text)
        with pytest.raises(CorruptInputError):
            read_measurements(tmp_path / "r")


@pytest.mark.parametrize("name", ["../../../escaped", "/tmp/escaped", "abc", ""])
def test_answers_do_not_name_the_file_that_they_are_kept_in(tmp_path: Path, name: str) -> None:
    path = answers(tmp_path / "r", [row("a", [1.0])], manifest=name)
    with pytest.raises(CorruptInputError, match="is no id of a manifest"):
        read_measurements(path)
