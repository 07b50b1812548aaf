"""Scoring by two workers of Ray: the table of one process, whatever happens to the workers.

``tests/test_scaling.py`` does so with a network, from the command line.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.importance.marking import Marking, kill
from tests.importance.scored import estimate
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.tables import ImportanceTable
from trt_layermerge.core.unit import Block
from trt_layermerge.errors import (
    DeviceError,
    MissingDependencyError,
    UnsupportedModelError,
    UsageError,
)
from trt_layermerge.importance import parallel
from trt_layermerge.importance.parallel import ATTEMPTS, Workers, score_in_parallel
from trt_layermerge.importance.table import fill_table

ray = pytest.importorskip("ray")

CANDIDATES = tuple(Candidate(Block(i, i + 2), "fit", (), ()) for i in range(6))
TWO = Workers(2, threads=1)


@pytest.fixture(scope="module", autouse=True)
def _ray_here() -> Iterator[None]:
    """Starts Ray on this machine alone, without statistics, and ends it."""
    parallel._ray(local=True)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def attempts(path: Path) -> dict[int, int]:
    return dict(sorted(Counter(int(line) for line in path.read_text().split()).items()))


def test_killed_workers_lose_nothing_and_a_deadly_candidate_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, path = {"model": "abc"}, tmp_path / "table"
    deadly = partial(Marking, tmp_path / "first", deadly=True)
    with pytest.raises(DeviceError, match=r"1 candidates ended 3 workers each.*: fit 3:5"):
        fill_table(CANDIDATES, lambda c: score_in_parallel(c, deadly, TWO), path, notes)
    assert attempts(tmp_path / "first") == {0: 1, 1: 2, 2: 1, 3: ATTEMPTS, 4: 1, 5: 1}
    assert len(path.read_text().splitlines()) == 1 + 5
    mended = partial(Marking, tmp_path / "second")
    table = fill_table(CANDIDATES, lambda c: score_in_parallel(c, mended, TWO), path, notes)
    assert attempts(tmp_path / "second") == {3: 1}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the workers have it
    alone = estimate(CANDIDATES, Marking(tmp_path / "third"), tmp_path / "alone", notes)
    assert ImportanceTable.load(path).entries == table.entries == alone.entries
    assert path.read_bytes() == (tmp_path / "alone").read_bytes()


def test_an_error_of_the_scorer_arrives_as_it_is(tmp_path: Path) -> None:
    make = partial(Marking, tmp_path / "attempts", refuse=True)
    with pytest.raises(UnsupportedModelError, match=r"^candidate 4 cannot be built$"):
        list(score_in_parallel(CANDIDATES, make, Workers(1, threads=1)))
    assert attempts(tmp_path / "attempts") == dict.fromkeys(range(5), 1)


def test_workers_that_cannot_start_are_not_tried_forever() -> None:
    with pytest.raises(DeviceError, match=r"3 workers died while they recorded.*--workers"):
        list(score_in_parallel(CANDIDATES, kill, Workers(1, threads=1)))


def test_a_worker_that_fits_on_no_machine_is_refused() -> None:
    with pytest.raises(UsageError, match="the largest has 2 processors"):
        list(score_in_parallel(CANDIDATES, kill, Workers(2, threads=3)))


def test_other_versions_are_refused() -> None:
    with pytest.raises(UsageError, match=r"a worker has trt-layermerge 9\.9 with torch 1\.0"):
        parallel._check_versions(("9.9", "1.0"))
    parallel._check_versions(parallel._versions())


def test_nothing_to_score_needs_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(score_in_parallel((), kill, TWO)) == []
    with pytest.raises(MissingDependencyError, match=r"trt-layermerge\[ray\]"):
        list(score_in_parallel(CANDIDATES, kill, TWO))
