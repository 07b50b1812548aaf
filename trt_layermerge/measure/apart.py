"""Timing in a process of its own: what crashes, hangs or eats the memory costs one network.

The child is started for a batch of work and gets the networks through a pipe, so that nothing has
to be written or cleared. It says that it is alive after every burst; one that is silent for too
long is ended. Starting it costs what importing the library costs: 0.3 s for ONNX Runtime.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from time import monotonic
from typing import Any, TypeAlias, cast

from trt_layermerge.backends import Backend, Runner
from trt_layermerge.backends.registry import get_backend
from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import DeviceError, LayerMergeError, StickyDeviceError, words_of
from trt_layermerge.measure.agent.client import START_SECONDS, Child, WorkerLost
from trt_layermerge.measure.agent.results import timing_of
from trt_layermerge.measure.agent.worker import die_with, own_output
from trt_layermerge.measure.timing import Timing, Turns, time_runners

HANG_SECONDS = 120.0
"""How long a network may take to be opened or to be run once, or a batch of runs of 10 ms."""

_SIGN_SECONDS = 1.0
"""At least so much time is between two signs of life: they shall not disturb what is timed."""


Timer: TypeAlias = Callable[[Sequence[bytes], Turns], "list[Timing]"]
"""Times networks as ``timing.time_models`` does; raises ``DeviceError`` if one cannot be timed."""


class Apart:
    """Times networks in a child process, which is replaced where one of them breaks it.

    A context manager that ends the child. Its device is the same, and so are the figures.

    Args:
        backend: Name of the backend.
        options: What ``get_backend`` takes besides.
    """

    def __init__(self, backend: str, options: Mapping[str, Any]) -> None:
        self.backend, self.options = backend, dict(options)
        self._child: Child | None = None

    def __enter__(self) -> Apart:
        """Returns the timer; its process starts with the first networks."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process."""
        self._end()

    def __call__(self, models: Sequence[bytes], turns: Turns) -> list[Timing]:
        """Returns the timing of each ONNX model, all timed in turns.

        Raises:
            DeviceError: If one cannot be built or run, or ends or hangs the process.
            StickyDeviceError: If the process does not start, so that no network is to blame.
        """
        request = {"sizes": [len(model) for model in models], "turns": asdict(turns)}
        try:
            child = self._ready()
            child.send(json.dumps(request).encode() + b"\n")
            for model in models:
                child.send(model)
            answer = child.receive(HANG_SECONDS)
        except WorkerLost as lost:
            self._end()
            raise DeviceError(str(lost)) from lost
        except BaseException:  # whoever interrupts leaves an answer behind
            self._end()
            raise
        if answer.get("sticky"):
            self._end()
        if "error" in answer:
            raise DeviceError(answer["error"])
        return [timing_of(timing) for timing in answer["timings"]]

    def _ready(self) -> Child:
        if self._child is None:
            own = (str(os.getpid()), self.backend, json.dumps(self.options))
            command = [sys.executable, "-m", __name__, *own]
            child = Child(command, tempfile.TemporaryFile())  # noqa: SIM115 - the child ends it
            try:
                child.receive(START_SECONDS)
            except (WorkerLost, DeviceError) as error:
                child.close()
                why = f"the measuring process does not start: {error}"
                raise StickyDeviceError(why) from error
            except BaseException:
                child.close()
                raise
            self._child = child
        return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()


class _Watched:
    """A runner that tells after every burst that it is alive."""

    def __init__(self, runner: Runner, alive: Callable[[], None]) -> None:
        self._runner, self._alive = runner, alive

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def time_burst(self, count: int) -> list[float]:
        found = self._runner.time_burst(count)
        self._alive()
        return found


def answer_to(
    models: list[bytes], turns: Turns, backend: Backend, alive: Callable[[], None]
) -> Json:
    """Returns the timings of some models, or the error; ``sticky``: the process cannot go on.

    Args:
        models: ONNX models; each is forgotten once it is open.
        turns: How they are timed.
        backend: Builds and runs them.
        alive: Called after every opening and every burst.
    """
    try:
        with ExitStack() as stack:
            runners = []
            while models:
                runner = stack.enter_context(backend.open(models.pop(0)))
                alive()
                runners.append(cast(Runner, _Watched(runner, alive)))
            return {"timings": [asdict(timing) for timing in time_runners(runners, turns)]}
    except Exception as error:  # libraries raise anything, and MemoryError
        return {"error": words_of(error), "sticky": isinstance(error, StickyDeviceError)}


def serve(parent: int, name: str, options: Mapping[str, Any]) -> int:
    """Answers requests from the standard input until there are no more; returns the exit code.

    Args:
        parent: Process that this one belongs to, and dies with.
        name: Name of the backend.
        options: What ``get_backend`` takes besides.
    """
    die_with(parent)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # where memory runs out, this process goes, and not its parent
    output, told = own_output(), [monotonic()]

    def answer(body: Json) -> None:
        output.write(json.dumps(body) + "\n")
        output.flush()

    def alive() -> None:
        if monotonic() - told[0] > _SIGN_SECONDS:
            answer({"alive": True})
            told[0] = monotonic()

    try:
        backend = get_backend(name, **options)
    except LayerMergeError as error:
        answer({"fatal": str(error), "code": error.exit_code})
        return error.exit_code
    answer({"ready": True})
    source = sys.stdin.buffer
    for line in source:
        request = json.loads(line)
        models = [source.read(size) for size in request["sizes"]]
        told[0] = monotonic()
        answer(answer_to(models, Turns(**request["turns"]), backend, alive))
    return 0


if __name__ == "__main__":
    sys.exit(serve(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])))
