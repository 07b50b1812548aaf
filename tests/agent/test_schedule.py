"""The order of measurements, against sequences written by hand and against interruption."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.agent import folders
from trt_layermerge.measure.agent.jobs import Manifest, load_manifest
from trt_layermerge.measure.agent.schedule import Row, Schedule, counts
from trt_layermerge.measure.timing import Timing


def timing(ms: float) -> Timing:
    return Timing((ms,), (ms,))


def manifest(folder: Path, count: int, every: int, sentinel: bool = True) -> Manifest:
    jobs = {"s": ["s"], **{str(i): [f"m{i}"] for i in range(count)}}
    if not sentinel:
        del jobs["s"]
    body = folders.body(folder, jobs, sentinel="s" if sentinel else None, sentinel_every=every)
    return load_manifest(folders.write(folder, body))


def play(schedule: Schedule, sentinels: list[float | None], stop_after: int = 10**6) -> list[Row]:
    """Measures as the schedule says: jobs take 5 ms, the sentinel what the list says, in turn."""
    done: list[Row] = []
    for _ in range(stop_after):
        task = schedule.next()
        if task is None:
            break
        value = 5.0 if not task.sentinel else sentinels.pop(0) if sentinels else 1.0
        done.append(Row(task.key, task.sentinel, None if value is None else timing(value)))
        schedule.add(done[-1])
    return done


def order(rows: list[Row]) -> str:
    return " ".join(row.key for row in rows)


@pytest.mark.parametrize(
    ("sentinels", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], "s 0 1 s 2 3 s 4 s"),
        ([1.0, 1.029, 0.971, 1.0], "s 0 1 s 2 3 s 4 s"),  # within three percent
        ([1.0, 1.04, 1.0], "s 0 1 s 0 1 s 2 3 s 4 s"),  # once more, then well
        ([1.0, 1.0, 0.9, 1.0], "s 0 1 s 2 3 s 2 3 s 4 s"),
        ([1.0, 1.1, 1.1, 1.1, 1.1, 1.1], "s 0 1 s 0 1 s 0 1 s 2 3 s 4 s"),  # at most twice
        ([1.0, 1.1, 1.1, 1.1, 1.0], "s 0 1 s 0 1 s 0 1 s 2 3 s 2 3 s 2 3 s 4 s"),
        ([1.0, 1.0, 1.0, 1.1, 1.0], "s 0 1 s 2 3 s 4 s 4 s"),  # at the end too
        ([None, 1.0, 1.0, 1.0], "s 0 1 s 2 3 s 4 s"),
        ([1.0, None, None, None], "s 0 1 s 2 3 s 4 s"),  # nothing to judge by
    ],
)
def test_the_order(tmp_path: Path, sentinels: list[float | None], expected: str) -> None:
    assert order(play(Schedule(manifest(tmp_path, 5, 2)), sentinels)) == expected


def test_without_a_sentinel_every_job_is_measured_once(tmp_path: Path) -> None:
    assert order(play(Schedule(manifest(tmp_path, 4, 2, sentinel=False)), [])) == "0 1 2 3"


def test_a_sentinel_alone_is_measured_once(tmp_path: Path) -> None:
    assert order(play(Schedule(manifest(tmp_path, 0, 2)), [])) == "s"


def test_drift_that_stays_is_told(tmp_path: Path) -> None:
    schedule = Schedule(manifest(tmp_path, 2, 2))
    play(schedule, [1.0, 1.1, 1.1, 1.1])
    assert len(schedule.notes) == 1
    assert schedule.notes[0].startswith("the sentinel became 10% slower and stayed so")


def test_a_failed_job_is_not_measured_again_for_drift(tmp_path: Path) -> None:
    schedule = Schedule(manifest(tmp_path, 2, 2))
    for row in (Row("s", True, timing(1)), Row("0", False, None), Row("1", False, timing(5))):
        schedule.add(row)
    schedule.add(Row("s", True, timing(2)))
    task = schedule.next()
    assert task is not None
    assert task.key == "1"
    assert schedule.left == 1


def test_interrupted_anywhere_it_ends_with_every_job_measured(tmp_path: Path) -> None:
    """Seed 0: 200 runs that are interrupted up to five times, sentinels drifting at random."""
    rng = random.Random(0)
    asked = manifest(tmp_path, 7, 3)
    for _ in range(200):
        rows: list[Row] = []
        levels = [rng.choice([1.0, 1.0, 1.0, 1.05, None]) for _ in range(30)]
        for _ in range(5):
            schedule = Schedule(asked, rows)
            first = schedule.next()
            assert first is None or first.sentinel
            rows += play(schedule, levels, rng.randrange(8))
        rows += play(Schedule(asked, rows), levels)
        assert counts(rows).keys() == asked.jobs.keys()
        assert Schedule(asked, rows).next() is None
        assert Schedule(asked, rows).left == 0


def test_nothing_is_lost_or_repeated_by_an_interruption(tmp_path: Path) -> None:
    """Without drift an interrupted schedule repeats the sentinel and nothing else."""
    asked = manifest(tmp_path, 6, 2)
    whole = order(play(Schedule(asked), []))
    assert whole == "s 0 1 s 2 3 s 4 5 s"
    for cut in range(len(whole.split())):
        rows = play(Schedule(asked), [], cut)
        rows += play(Schedule(asked, rows), [])
        assert [row.key for row in rows if not row.sentinel] == ["0", "1", "2", "3", "4", "5"]


def test_a_success_counts_before_a_failure(tmp_path: Path) -> None:
    rows = [Row("a", False, timing(1)), Row("a", False, timing(2)), Row("a", False, None)]
    assert counts([*rows, Row("b", False, None)]) == {"a": rows[1], "b": Row("b", False, None)}
