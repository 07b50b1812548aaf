"""Processes that measure, as their parent sees them: started, asked, watched, and ended."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Sequence

import trt_layermerge
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import DeviceError, error_of
from trt_layermerge.measure.agent.jobs import Job, Manifest
from trt_layermerge.measure.agent.results import own_file

START_SECONDS = 180.0
"""How long the libraries may take to load."""

LOG = "agent.log"
_END_SECONDS = 10.0
_MOST_ANSWER_BYTES = 256 << 20


class WorkerLost(Exception):
    """A worker that died, hung or answered nonsense; another one can be started."""


class Child:
    """A process of ours that answers requests with lines of JSON, until it is closed.

    Args:
        command: What starts it.
        log: Open file that takes what it prints besides, for its last words.
        pass_fds: Descriptors that it keeps open while it lives.
    """

    def __init__(
        self, command: Sequence[str], log: IO[bytes], pass_fds: Sequence[int] = ()
    ) -> None:
        self._pending, self._log = b"", log
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the parent alone
            pass_fds=tuple(pass_fds),
        )

    def send(self, data: bytes) -> None:
        """Hands data to its standard input. Raises ``WorkerLost`` if it is gone."""
        assert self._process.stdin is not None
        left = memoryview(data)
        try:
            while left:
                left = left[self._process.stdin.write(left) :]
        except OSError:
            raise self._lost() from None

    def receive(self, seconds: float) -> Json:
        """Returns the next answer; each sign of life (``alive``) gives it the time anew.

        Raises:
            WorkerLost: If it dies, answers nonsense, or says nothing for so long.
            LayerMergeError: If it says why it cannot work.
        """
        answer: Json = {"alive": True}
        while "alive" in answer:
            answer = self._next(seconds)
        if "fatal" in answer:
            raise error_of(answer["code"], answer["fatal"])
        return answer

    def close(self) -> None:
        """Ends the process and its children at once.

        Raises:
            DeviceError: If the driver does not let go of it.
        """
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"process {self._process.pid} hangs in the driver and cannot be ended; reboot the "
                "device, then type the same command to continue"
            ) from None
        finally:
            for stream in (self._process.stdin, self._process.stdout, self._log):
                if stream is not None:
                    stream.close()

    def _next(self, seconds: float) -> Json:
        """Returns the next line of its output, within some time."""
        assert self._process.stdout is not None
        output, until = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._pending:
            left = until - time.monotonic()
            if left <= 0 or not select.select([output], [], [], left)[0]:
                raise WorkerLost(f"it took longer than {seconds:g} s and was ended")
            piece = os.read(output, 1 << 16)
            if not piece or len(self._pending) > _MOST_ANSWER_BYTES:
                raise self._lost()
            self._pending += piece
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            answer: Json = json.loads(line)
        except ValueError:
            raise WorkerLost("the measuring process answered nonsense") from None
        return answer

    def _lost(self) -> WorkerLost:
        """Returns how the process ended, with the last words of its log."""
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return WorkerLost("the measuring process stopped to answer and was ended")
        how = f"ended with code {code}" if code >= 0 else f"was ended by {_signal_name(-code)}"
        hint = " (often the system, for lack of memory)" if code == -signal.SIGKILL else ""
        return WorkerLost(f"the measuring process {how}{hint}{self._last_words()}")

    def _last_words(self) -> str:
        try:
            self._log.seek(max(0, os.fstat(self._log.fileno()).st_size - 2000))
            lines = self._log.read().decode(errors="replace").split("\n")
        except (OSError, ValueError):
            return ""
        said = " | ".join(line.strip() for line in lines if line.strip())[-500:]
        return f"; it said: {said}" if said else ""


class Worker(Child):
    """A running worker of a folder of jobs, the device it measures on, and facts about that."""

    def __init__(self, folder: Path, backend: str, lock: int) -> None:
        """Starts a worker and waits until its libraries are loaded.

        Args:
            folder: The folder of the jobs.
            backend: Name of the backend.
            lock: Descriptor that locks the folder; the worker keeps it open while it lives.

        Raises:
            WorkerLost: If it dies or hangs.
            LayerMergeError: If it says why it cannot work.
        """
        log = own_file(folder / LOG).open("w+b")
        super().__init__(worker_command(folder, backend), log, (lock,))
        try:
            hello = self.receive(START_SECONDS)
            self.device = DeviceInfo.from_json(hello["device"])
            self.facts: Json = hello["facts"]
        except BaseException:
            self.close()
            raise

    def measure(self, job: Job, manifest: Manifest) -> Json:
        """Returns the worker's answer for a job.

        Raises:
            WorkerLost: If it dies, or takes longer than the job may.
            CorruptInputError: If a model is not what the manifest says.
        """
        request = {
            "key": job.key,
            "models": [asdict(model) for model in job.models],
            "anew": job.anew,
            "rounds": manifest.rounds,
            "burst_ms": manifest.burst_ms,
        }
        self.send(json.dumps(request).encode() + b"\n")
        return self.receive(manifest.timeout_s * len(job.models))


def worker_command(folder: Path, backend: str) -> list[str]:
    """Returns how a worker is started from here: out of the zipapp, or out of the package."""
    root = _root()
    start = [str(root)] if root.is_file() else ["-m", "trt_layermerge.measure.agent"]
    return [sys.executable, *start, "--worker", str(os.getpid()), "--backend", backend, str(folder)]


def _root() -> Path:
    """Returns what holds the package: a folder, or the zipapp."""
    return Path(trt_layermerge.__file__).resolve().parents[1]


def _environment() -> dict[str, str]:
    """Returns the environment of a worker: it finds the same package that its parent uses."""
    known = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_root()), *([known] if known else [])]),
    }


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
