"""What was measured of whole networks outlives a kill, and nothing else is taken for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.measure.scripted import ScriptedBackend
from tests.measure.troubled import network
from tests.pipeline import tiny
from trt_layermerge.measure.kept import KeptMeter
from trt_layermerge.measure.meter import BackendMeter, Beside, Failed, Outcome


def meter(path: Path, backend: ScriptedBackend) -> KeptMeter:
    return KeptMeter(BackendMeter(backend), path)


def asked(kept: KeptMeter, *names: str, rounds: int = 3) -> list[Outcome]:
    return kept.networks(network("o"), [network(name) for name in names], rounds)


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    path, noisy = tmp_path / "kept.jsonl", ScriptedBackend(noise=0.3)
    first = meter(path, noisy)
    found = [asked(first, "a", "b"), asked(first, "a"), asked(first, "a", rounds=6)]
    assert all(isinstance(one, Beside) for outcomes in found for one in outcomes)
    other = ScriptedBackend(noise=0.3, seed=7)
    again = meter(path, other)
    assert [asked(again, "a", "b"), asked(again, "a"), asked(again, "a", rounds=6)] == found
    assert other.opened == []
    asked(again, "c")
    assert other.opened == ["o", "c"]
    again.forget()
    assert not path.exists()


def test_another_request_is_measured_and_so_is_all_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    first = meter(path, ScriptedBackend())
    for name in "abc":
        asked(first, name)
    backend = ScriptedBackend()
    again = meter(path, backend)
    for name in "axc":
        asked(again, name)
    assert backend.opened == ["o", "x", "o", "c"]
    last = ScriptedBackend()
    third = meter(path, last)
    for name in "axc":
        asked(third, name)
    assert last.opened == []


def test_other_devices_failures_and_damage_are_no_answers(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    assert isinstance(asked(meter(path, ScriptedBackend(broken={"a": "no"})), "a")[0], Failed)
    backend = ScriptedBackend()
    asked(meter(path, backend), "a")
    assert backend.opened == ["o", "a"]
    elsewhere = ScriptedBackend(name="another")
    asked(meter(path, elsewhere), "a")
    assert elsewhere.opened == ["o", "a"]
    path.write_bytes(path.read_bytes().replace(b'"round_ms": [0.', b'"round_ms": [1.', 1))
    damaged = ScriptedBackend(name="another")
    asked(meter(path, damaged), "a")
    assert damaged.opened == ["o", "a"]


@pytest.mark.parametrize(
    "place",
    ["trt_layermerge.session.session.save_choice", "trt_layermerge.pipeline.stage.record_stage"],
)
def test_a_search_that_is_taken_up_again_measures_no_network_twice(
    runs: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Interrupted before its plan is written, and before the stage is noted."""
    counts: list[int] = []
    right = BackendMeter.networks

    def networks(self: BackendMeter, *given: object, **more: object) -> list[Outcome]:
        counts.append(1)
        return right(self, *given, **more)  # type: ignore[arg-type]

    def search() -> bytes:
        tiny.run(runs, only_stage="search", overrides={"search.race_steps": 0})
        return (runs / "tiny" / "plan.json").read_bytes()

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BackendMeter, "networks", networks)
    plan, whole = search(), len(counts)
    counts.clear()
    with monkeypatch.context() as patch:
        patch.setattr(place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            search()
    assert (runs / "tiny" / "search.part.jsonl").exists()
    assert search() == plan
    assert len(counts) == whole >= 2
    assert not (runs / "tiny" / "search.part.jsonl").exists()
