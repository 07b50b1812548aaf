"""A small sample of the campaign: no damage of a file is raw, silent or endless."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.faults import campaign
from benchmarks.faults.__main__ import FAMILIES, Family, main
from benchmarks.faults.attacks import attack_trials
from benchmarks.faults.campaign import BAD, Trial, reader_trials, verb_trials
from benchmarks.faults.doors import Door
from benchmarks.faults.mutations import mutated
from benchmarks.faults.payloads import _damage, payload_trials, payloads
from benchmarks.studies.settings import ROOT
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
        work = campaign.reading(door, b"sound", "b'sound'", campaign._mutate)
        found: str = Trial("door", 0, work, sound_bytes=9 << 20).row(seed=0)["outcome"]
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
    assert outcome(lambda data: b"x" * (30 << 20) and b"sound") == "memory"
    assert outcome(lambda data: b"x" * (2 << 20) and b"sound") == "same"


def test_damages_differ_from_each_other_and_come_again_by_their_seed() -> None:
    data = b'{"schema": "x", "values": [1, 2, {"deep": null}]}\n'
    found = [mutated(data, Random(seed)) for seed in range(200)]
    assert found == [mutated(data, Random(seed)) for seed in range(200)]
    assert all(other != data for _, other in found[:50] if other)
    assert len({other for _, other in found}) > 100
    assert len({how for how, _ in found}) > 10


def test_a_campaign_continues_and_ends_with_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    outcomes = iter(["same", "refused", "raw"])

    def trials(folder: Path, count: int) -> list[Trial]:
        def work(number: int) -> Any:
            begun.append(number)
            return next(outcomes), "said"

        return [Trial("x", n, lambda rng, n=n: work(n)) for n in range(count)]  # type: ignore[misc]

    monkeypatch.setitem(FAMILIES, "readers", Family(trials, 3, 2))  # type: ignore[arg-type]
    monkeypatch.setattr("resource.setrlimit", lambda *limit: None)
    given = ["--work", str(tmp_path), "--only", "readers"]
    assert main([*given, "--quick"]) == 0
    assert "Not reached yet" in capsys.readouterr().out
    assert main([*given]) == 1
    assert begun == [0, 1, 2]
    out = capsys.readouterr().out
    assert "- raw, x: said" in out and "| x | 1 | 1 | 1 |" in out and "| readers | 3 | 1 |" in out


def test_whatever_happens_to_a_run_it_is_taken_up_again(finished: Path, tmp_path: Path) -> None:
    """Kills, limits, crowds and candidates, in processes that are forked from a fresh one."""
    for name in ("nets.py", "tiny.safetensors", "tiny.yaml", "train.npz", "val.npz", "test.npz"):
        (tmp_path / "project").mkdir(exist_ok=True)
        shutil.copy(finished / name, tmp_path / "project" / name)
    asked = ("kills=2", "limits=1", "crowds=1", "candidates=1")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", "--work", tmp_path, "--only", *asked],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("| kills | 2 | 0 |", "| limits | 1 | 0 |", "| crowds | 1 | 0 |"):
        assert line in done.stdout


def test_nothing_that_comes_with_a_file_is_executed(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    rows = [trial.row(seed=3) for trial in payload_trials(work, 1)]
    assert bad(rows) == []
    assert len(rows) >= 80


def test_a_payload_that_is_believed_is_noticed(tmp_path: Path) -> None:
    path, canary = tmp_path / "file", tmp_path / "canary"
    path.write_bytes(b"sound")
    door = Door("door", path, lambda path: pickle.loads(path.read_bytes()))
    names = [name for name in payloads(canary) if name.startswith("pickle os.system, protocol")]
    for name in names:
        put = _damage(payloads(canary)[name])
        work = campaign.reading(door, b"sound", "", put, canary)
        assert Trial(name, 0, work).row(seed=0)["outcome"] == "executed"
    assert len(names) == 2 and path.read_bytes() == b"sound" and not canary.exists()


def test_no_engine_or_bundle_is_taken_for_what_it_is_not(work: Path) -> None:
    rows = [trial.row(seed=4) for trial in attack_trials(work, 50)]
    assert {row["outcome"] for row in rows} == {"refused"}, [
        r for r in rows if r["outcome"] != "refused"
    ]
    assert len(rows) >= 50
