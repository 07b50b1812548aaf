"""Where output goes: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from trt_layermerge.pipeline.options import StageState

MARKS: Mapping[StageState, tuple[str, str]] = {
    "run": ("…", "cyan"),
    "skip": ("=", "dim"),
    "done": ("✓", "green"),
}
"""Sign and style in front of a stage's line."""

BAR_AFTER_SECONDS = 2.0

LINE_EVERY_SECONDS = 30.0
"""Where there is no terminal to show a bar on."""


def error_console(file: TextIO | None = None) -> Console:
    """Returns a console on stderr that takes text literally: no markup, no emoji names."""
    return Console(stderr=True, file=file, markup=False, emoji=False, highlight=False)


def result_console(file: TextIO | None = None) -> Console:
    """Returns a console on stdout that takes text literally."""
    return Console(file=file, markup=False, emoji=False, highlight=False)


def print_error(console: Console, paragraph: str) -> None:
    """Prints what went wrong, unwrapped, so that commands in it can be copied."""
    console.print(Text.assemble(("error: ", "bold red"), paragraph), soft_wrap=True)


def print_result(result: Mapping[str, Any], view: RenderableType | None) -> None:
    """Prints a result to stdout: as JSON where there is no view of it."""
    if view is None:
        print(json.dumps(result, indent=1))
    else:
        result_console().print(view)


class RichReporter:
    """Prints a line for every stage, and a bar for work that takes longer than two seconds.

    A log, which shows no bar, gets a line about such work every half a minute. Use it as a context
    manager, so that a bar is taken off the screen whatever happens.
    """

    def __init__(
        self, console: Console, verbose: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Reports to ``console``; a negative ``verbose`` silences everything."""
        self._console = console
        self._verbose = verbose
        self._clock = clock
        self._started: dict[str, tuple[float, int]] = {}
        self._told: dict[str, float] = {}
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=verbose < 0 or not console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> RichReporter:
        """Returns the reporter, ready."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Takes the bars off the screen."""
        self._bars.stop()

    def stage(
        self, name: str, state: StageState, seconds: float | None = None, detail: str = ""
    ) -> None:
        """Prints one line; the start of a stage only with ``-v``.

        Args:
            name: Name of the stage.
            state: Whether it begins, is skipped or is done.
            seconds: How long it took, or None.
            detail: What else is said.
        """
        if state == "run" and self._verbose < 1:
            return
        sign, style = MARKS[state]
        took = "" if seconds is None else f"{seconds:.1f} s"
        self._line(Text.assemble((sign, style), f" {name:<11}{took:>9}  {detail}".rstrip()))

    def progress(self, label: str, done: int, total: int) -> None:
        """Moves the bar of some work; it appears when the work has taken two seconds."""
        if done >= total:
            self._started.pop(label, None)
            self._told.pop(label, None)
            task = self._tasks.pop(label, None)
            if task is not None:
                self._bars.remove_task(task)
            return
        now = self._clock()
        started, first = self._started.setdefault(label, (now, done))
        if not self._console.is_terminal:
            if now - self._told.setdefault(label, started) >= LINE_EVERY_SECONDS:
                self._told[label] = now
                self.note(
                    f"{label} {done}/{total}{_left(now - started, done - first, total - done)}"
                )
            return
        if now - started < BAR_AFTER_SECONDS:
            return
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label, total=total)
        self._bars.update(self._tasks[label], completed=done, total=total)

    def note(self, text: str) -> None:
        """Prints a line, indented below its stage."""
        self._line(Text(f"  {text}", style="dim"))

    def _line(self, text: Text) -> None:
        if self._verbose >= 0:
            self._console.print(text, soft_wrap=True)


def _left(seconds: float, done: int, left: int) -> str:
    """Returns the time left in words, at the pace of what was done in some seconds."""
    if not done:
        return ""
    rest = round(seconds / done * left)
    return f", {rest} s left" if rest < 120 else f", {round(rest / 60)} min left"
