"""What the processes of these tests do."""

from __future__ import annotations

import os
import time

from studies.workers import Clock


def double(job: int, clock: Clock) -> int:
    """Twice the job; 13 ends the process, 0 fails, negative jobs wait until the time is over."""
    if job == 13:
        os._exit(9)
    if job == 0:
        raise ValueError("nothing to double")
    while job < 0:
        clock.check()
        time.sleep(0.01)
    return 2 * job
