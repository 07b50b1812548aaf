"""Runs of the tiny project in processes that something happens to, and what such runs come to.

The processes are forked from this one, in which everything is imported and nothing was computed:
libraries of numbers start threads when they compute, and threads do not survive a fork.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from tests.pipeline import tiny
from trt_layermerge.cli.main import main
from trt_layermerge.importance.calibrate import CalibrateScorer
from trt_layermerge.measure import meter
from trt_layermerge.pipeline import api
from trt_layermerge.pipeline.options import PACKAGE, STAGES

ALL = (*STAGES, PACKAGE)
SETTINGS = ("package.targets=[plain]", "search.race_steps=0", "finetune.options.epochs=1")
TIMED = (
    "bench.json",
    "finetune.jsonl",
    "finetune.state.safetensors",
    "package.json",
    "report.html",
    "report.md",
    "state.json",
)
"""Files of a run that tell how long something took: no two runs have the same."""

PATIENCE_S = 300
"""Ten times what the longest takes alone: what hangs does so for ever, a busy machine does not."""

OnStage = Callable[[str], None]


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code or the signal, negative, and what it said."""

    code: int
    said: str

    @property
    def raw(self) -> bool:
        """Whether that is no paragraph of ours."""
        return self.code in (1, 99) or "This is a bug" in self.said or "Traceback" in self.said


def started(work: Callable[[], int], said: Path) -> int:
    """Starts a process; returns its number.

    Args:
        work: What it does; returns its exit code.
        said: File that its standard error goes to.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        code = work()
    except BaseException as error:
        os.write(2, f"Traceback of {error!r}".encode())
    finally:
        os._exit(code)


def ended(pid: int, said: Path, patience_s: float = PATIENCE_S) -> Ended:
    """Waits for a process, or kills it where it takes too long."""
    until = time.monotonic() + patience_s
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Ended(99, f"Traceback: it took longer than {patience_s} s")
        time.sleep(0.005)
    return Ended(os.waitstatus_to_exitcode(found[1]), said.read_text(errors="replace"))


def observe(on_stage: OnStage, tally: Path | None = None) -> None:
    """Has this process tell every stage that begins, and count every finished measurement.

    Args:
        on_stage: Called with the stage's name.
        tally: A line is appended for every measurement.
    """
    perform = api.perform

    def performing(stage: api.Stage, *rest: object, **more: object) -> None:
        on_stage(stage.name)
        perform(stage, *rest, **more)

    api.perform = performing
    if tally is None:
        return
    handle = os.open(tally, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for owner, name in ((meter, "time_models"), (CalibrateScorer, "entry")):
        _count(owner, name, handle)


def _count(owner: object, name: str, handle: int) -> None:
    right = getattr(owner, name)

    def counting(*given: object, **more: object) -> object:
        found = right(*given, **more)
        os.write(handle, b"%s\n" % name.encode())
        return found

    setattr(owner, name, counting)


@dataclass
class Project:
    """The tiny project in a folder, and its run, which is always at the same place.

    Attributes:
        folder: Its files; ``runs/tiny`` is the run, ``at/STAGE`` what it is before a stage.
        sound: Content of the files of an undisturbed run, but for those with times.
        names: All files of one.
        points: Points of each stage that were counted (``kills``).
    """

    folder: Path
    sound: dict[str, bytes] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    points: dict[str, int] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        """The run."""
        return self.folder / "runs" / "tiny"

    @property
    def said(self) -> Path:
        """What the last process said."""
        return self.folder / "said"

    def type(self, *more: str) -> int:
        """Types ``run`` in this process; returns the exit code."""
        settings = [word for value in SETTINGS for word in ("--set", value)]
        where = ("--runs-dir", str(self.folder / "runs"), "-q")
        return main(["run", str(self.folder / "tiny.yaml"), *settings, *where, *more])

    def resumed(self, prepare: Callable[[], None] = lambda: None) -> Ended:
        """Types it in a process of its own that is prepared first."""

        def work() -> int:
            tempfile.tempdir = str(self.temporary)
            prepare()
            return self.type()

        return ended(started(work, self.said), self.said)

    @property
    def temporary(self) -> Path:
        """Folder for temporary files."""
        path = self.folder / "temporary"
        path.mkdir(exist_ok=True)
        return path

    def reset(self, stage: str | None) -> None:
        """Puts the run back to where a stage begins; None is where nothing was begun."""
        shutil.rmtree(self.run.parent, ignore_errors=True)
        shutil.rmtree(self.temporary)
        self.run.parent.mkdir(exist_ok=True)
        if stage is not None:
            shutil.copytree(self.folder / "at" / stage, self.run, symlinks=True)

    def ready(self) -> None:
        """Makes the project, undisturbed, and imports what that took, where it is not made yet."""
        if self.names:
            return
        found, modules = self._baseline()
        for name in modules:
            with suppress(ImportError):  # some are made up by others
                importlib.import_module(name)
        self.sound = {name: data for name, data in found.items() if name not in TIMED}
        self.names = set(found)

    def _baseline(self) -> tuple[dict[str, bytes], list[str]]:
        """Returns the files of an undisturbed run, and the modules that it imported."""
        modules = self.folder / "modules.json"

        def work() -> int:
            if not (self.folder / "tiny.yaml").exists():
                tiny.write_project(self.folder)
            tempfile.tempdir = str(self.temporary)
            observe(self._keep, self.folder / "tally.whole")
            code = self.type()
            modules.write_text(json.dumps(sorted(sys.modules)))
            return code

        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "tally.whole").unlink(missing_ok=True)
        self.reset(None)
        shutil.rmtree(self.folder / "at", ignore_errors=True)
        done = ended(started(work, self.said), self.said)
        if done.code != 0:
            raise RuntimeError(f"the undisturbed run fails: {done.said}")
        return files(self.run), json.loads(modules.read_text())

    def _keep(self, stage: str) -> None:
        shutil.copytree(self.run, self.folder / "at" / stage, ignore=lambda *_: [".lock"])
        shutil.copy(self.folder / "tally.whole", self.folder / f"tally.{stage}")

    @cached_property
    def measured(self) -> dict[str, int]:
        """Measurements before each stage, and of the whole."""
        paths = self.folder.glob("tally.*")
        return {p.suffix[1:]: len(p.read_text().splitlines()) for p in paths}

    def faults(self) -> str:
        """Returns what is wrong with the run and its surroundings; nothing where all is well."""
        found = files(self.run)
        other = sorted(n for n, data in self.sound.items() if found.get(n) != data)
        left = sorted(found.keys() - self.names)
        twice = sorted(n for n in found if n.endswith(".jsonl") and _twice(found[n]))
        left += sorted(p.name for p in self.temporary.iterdir())
        told = {"other": other, "left behind": left, "rows twice": twice}
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in told.items() if names)


@cache
def project_in(folder: Path) -> Project:
    """Returns the project in a folder: the same for all kinds of faults, so it is made once."""
    return Project(folder)


def _twice(table: bytes) -> bool:
    return any(n > 1 for n in Counter(table.splitlines()).values())


def files(folder: Path) -> dict[str, bytes]:
    """Returns the content of every file below a folder by name; of a link, where it leads."""
    paths = (p for p in folder.rglob("*") if p.is_symlink() or p.is_file())
    return {
        str(p.relative_to(folder)): os.readlink(p).encode() if p.is_symlink() else p.read_bytes()
        for p in paths
    }


def stages_of(count: int) -> Iterator[tuple[int, str]]:
    """Yields numbers with stages in turn, the last stage first: least is left to do after it."""
    for number in range(count):
        yield number, ALL[-1 - number % len(ALL)]
