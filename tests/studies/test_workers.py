from __future__ import annotations

import os
import time

import pytest

from studies.workers import Clock, OutOfTimeError, run_jobs
from tests.studies.jobs import double
from trt_layermerge.errors import DeviceError


def run(jobs: list[int], workers: int, clock: Clock | None = None) -> dict[int, int]:
    """Doubles jobs; doubling 2 makes 5 a job too."""
    found: dict[int, int] = {}

    def pending() -> list[int]:
        return [job for job in [*jobs, *([5] if 2 in found else [])] if job not in found]

    run_jobs(pending, double, found.__setitem__, workers, clock or Clock())
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_once_and_jobs_may_follow_from_others(workers: int) -> None:
    assert run([1, 2, 3], workers) == {1: 2, 2: 4, 3: 6, 5: 10}


def test_a_process_that_dies_is_named() -> None:
    with pytest.raises(DeviceError, match=r"13 ended without an answer \(exit code 9\)"):
        run([13], 2)


def test_a_job_that_fails_says_why() -> None:
    with pytest.raises(DeviceError, match="nothing to double"):
        run([0], 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_when_time_is_over_running_jobs_stop_and_none_begins(workers: int) -> None:
    with pytest.raises(OutOfTimeError):
        run([-1, 7], workers, Clock(time.time() + 0.2))
    with pytest.raises(OutOfTimeError):
        run([7], workers, Clock(time.time() - 1))


def test_a_process_without_its_parent_stops() -> None:
    Clock(parent=os.getppid()).check()
    with pytest.raises(OutOfTimeError):
        Clock(parent=os.getppid() + 1).check()
