"""A command that is followed: its progress, its complaint, and who ends it."""

from __future__ import annotations

import sys
import time

import pytest

from trt_layermerge.errors import DeviceError
from trt_layermerge.measure.command import follow


def test_what_a_command_says_is_told_apart() -> None:
    said = "1/2 a, 3 s left\nnoise\nerror: CUDA failed with\nerror: 35. Type this\n2/2 b\n"
    steps: list[tuple[int, int]] = []
    command = [sys.executable, "-c", f"import sys; sys.stderr.write({said!r}); sys.exit(4)"]
    ended = follow(command, lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]
    assert ended.code == 4
    assert ended.said == "noise | error: CUDA failed with | error: 35. Type this"
    assert ended.complaint == "CUDA failed with error: 35. Type this"

    killed = follow([sys.executable, "-c", "print('an error: no')"], lambda done, total: None)
    assert (killed.code, killed.said, killed.complaint) == (0, "an error: no", "")


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match="cannot start /nonexistent/program"):
        follow(["/nonexistent/program"], lambda done, total: None)


def test_an_interrupted_caller_interrupts_the_command() -> None:
    """The command would sleep for a minute; it ends in order, and at once."""
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print('1/2 asleep', flush=True)\n"
        "time.sleep(60)\n"
    )

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        follow([sys.executable, "-c", code], interrupt)
    assert time.monotonic() - started < 20
