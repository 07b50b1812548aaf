"""A small sample of the campaign: no damage of a file is raw, silent or endless."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.faults import campaign
from benchmarks.faults.__main__ import main, table
from benchmarks.faults.campaign import BAD, Trial, reader_trials, verb_trials
from benchmarks.faults.doors import Door
from benchmarks.faults.mutations import mutated
from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import CorruptInputError


@pytest.fixture(scope="module")
def work(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a campaign, with a finished run in it."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("faults") / "work"))


def bad(rows: list[Json]) -> list[Json]:
    return [row for row in rows if row["outcome"] in BAD]


def test_every_reader_refuses_what_is_damaged_or_reads_the_same(work: Path) -> None:
    rows = [trial.row(seed=1) for trial in reader_trials(work, 12)]
    assert bad(rows) == []
    readers = {row["trial"] for row in rows}
    assert len(readers) == 22 and len(rows) == 12 * len(readers)
    refused = [row for row in rows if row["outcome"] == "refused"]
    assert len(refused) > len(rows) / 2
    assert len({row["trial"] for row in refused}) == len(readers)


def test_a_verb_over_a_damaged_run_refuses_or_comes_to_the_same(work: Path) -> None:
    trials = list(verb_trials(work, 1))
    rows = [trial.row(seed=2) for trial in trials[::2]]
    assert bad(rows) == []
    assert {row["outcome"] for row in rows} >= {"refused", "same"}


def test_the_campaign_notices_what_it_looks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"sound")
    monkeypatch.setattr(campaign, "PATIENCE_S", 1)

    def outcome(read: Any, sealed: bool = False) -> str:
        door = Door("door", path, lambda path: read(path.read_bytes()), sealed)
        work = campaign._reading(door, b"sound", "b'sound'")
        found: str = Trial("door", 0, work).row(seed=0)["outcome"]
        assert path.read_bytes() == b"sound"
        return found

    def refuses(data: bytes) -> bytes:
        raise CorruptInputError("no")

    assert outcome(refuses) == "refused"
    assert outcome(lambda data: b"sound") == "same"
    assert outcome(lambda data: data) == "another value"
    assert outcome(lambda data: data, sealed=True) == "other"
    assert outcome(lambda data: {}[data]) == "raw"
    assert outcome(lambda data: time.sleep(5)) == "hang"


def test_damages_differ_from_each_other_and_come_again_by_their_seed() -> None:
    data = b'{"schema": "x", "values": [1, 2, {"deep": null}]}\n'
    found = [mutated(data, Random(seed)) for seed in range(200)]
    assert found == [mutated(data, Random(seed)) for seed in range(200)]
    assert all(other != data for _, other in found[:50] if other)
    assert len({other for _, other in found}) > 100
    assert len({how for how, _ in found}) > 10


def test_a_campaign_continues_and_ends_with_what_it_found(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, int]] = []
    outcomes = iter(["same", "refused", "raw"])

    def trials(folder: Path, each: int) -> list[Trial]:
        def work(name: str, number: int) -> Any:
            begun.append((name, number))
            return next(outcomes), "said"

        return [Trial("x", n, lambda rng, n=n: work("x", n)) for n in range(each)]  # type: ignore[misc]

    monkeypatch.setattr("benchmarks.faults.__main__.reader_trials", trials)
    monkeypatch.setattr("benchmarks.faults.__main__.verb_trials", lambda folder, each: [])
    monkeypatch.setattr("resource.setrlimit", lambda *limit: None)
    given = ["--work", str(tmp_path), "--verbs", "0", "--readers"]
    assert main([*given, "2"]) == 0
    assert main([*given, "3"]) == 1
    assert begun == [("x", 0), ("x", 1), ("x", 2)]
    assert "raw: x 2: said" in capsys.readouterr().out
    assert "| x | 1 | 0 | 0 | 0 | 0 | 0 |" in table([{"trial": "x", "outcome": "same"}])
