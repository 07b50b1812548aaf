"""A command that tells of its progress, followed to its end."""

from __future__ import annotations

import re
import signal
import subprocess
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from trt_layermerge.errors import DeviceError
from trt_layermerge.measure.table import Progress

_STEP = re.compile(r"(\d+)/(\d+) ")
_ERROR = "error: "
_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and its last lines that are no progress.

    ``complaint`` is the paragraph that the agent ended with, or nothing where it did not end so.
    """

    code: int
    said: str
    complaint: str


def follow(command: Sequence[str], on_progress: Progress) -> Ended:
    """Runs a command and passes on its progress, ``DONE/TOTAL …`` on a line; returns how it ended.

    An interrupted caller interrupts the command too, and waits for it.

    Raises:
        DeviceError: If there is no such command.
    """
    said: deque[str] = deque(maxlen=5)
    complaint: list[str] = []
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise DeviceError(f"cannot start {command[0]}: {error.strerror}; install it") from error
    with process:
        try:
            for line in process.stdout or ():
                if step := _STEP.match(line):
                    on_progress(int(step[1]), int(step[2]))
                elif line.strip():
                    said.append(line.strip())
                    if complaint or line.startswith(_ERROR):
                        complaint.append(line.strip())
        except BaseException:
            _end(process)
            raise
    paragraph = " ".join(complaint)[len(_ERROR) :]
    return Ended(process.returncode, " | ".join(said) or "nothing", paragraph)


def _end(process: subprocess.Popen[str]) -> None:
    """Interrupts a process as Ctrl-C does, so that it ends its own children; then ends it."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
