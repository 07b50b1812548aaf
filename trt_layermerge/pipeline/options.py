"""What a caller asks of the pipeline, and what it is told while the pipeline works."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from trt_layermerge.errors import UsageError
from trt_layermerge.finetune.recipe import MEANINGS

STAGES: tuple[str, ...] = (
    "inspect",
    "latency",
    "importance",
    "search",
    "finetune",
    "merge",
    "export",
    "calibrate",
    "build",
    "bench",
    "verify",
    "report",
)
"""The stages in the order in which ``run`` goes through them."""

PACKAGE = "package"
"""The stage that ``run`` ends with where the recipe names targets (``package.targets``)."""

LONGEST_NAME = 200
"""Bytes of a run's name: file systems allow 255, and files beside it have longer ones."""

PRESETS: Mapping[str, str] = MEANINGS
"""What ``finetune.preset`` may name, and what that is."""


def duration(seconds: float) -> str:
    """Returns a time that is known roughly, such as ``20 s``, ``6 min`` or ``2.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


StageState: TypeAlias = Literal["run", "skip", "done"]


@dataclass(frozen=True)
class RunOptions:
    """One request to the pipeline.

    Attributes:
        run: Name of the run, a folder below ``runs_dir``.
        runs_dir: Where runs are kept.
        recipe: Recipe to start from; None means the one that the run remembers.
        overrides: Values by dotted recipe key, such as ``{"search.speedup": 2.0}``; they win over
            the recipe.
        from_stage: First stage to do again, or None to skip everything that is done.
        only_stage: The only stage to do, or None for all.
        trust_engine: Whether to load engines whose sidecar is missing or another engine's. Never
            remembered: it is part of no recipe.
        verbose: 0 normal, 1 and 2 more, -1 quiet.
    """

    run: str
    runs_dir: Path = Path("runs")
    recipe: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    from_stage: str | None = None
    only_stage: str | None = None
    trust_engine: bool = False
    verbose: int = 0

    def __post_init__(self) -> None:
        """Refuses a run name that is not a plain folder name, and unknown stages."""
        if self.run in ("", ".", "..") or "/" in self.run or "\0" in self.run:
            raise UsageError(
                f"{self.run!r} cannot be the name of a run, which is one folder below "
                f"{self.runs_dir}; use a plain name (--run NAME) and --runs-dir DIR"
            )
        # It goes into files, messages and bundles, so it has to be text.
        if not self.run.isprintable() or len(os.fsencode(self.run)) > LONGEST_NAME:
            raise UsageError(
                f"{self.run!r:.60} cannot be the name of a run, which is text of "
                f"{LONGEST_NAME} bytes at most; use another one (--run NAME)"
            )
        for stage in (self.from_stage, self.only_stage):
            if stage not in (None, PACKAGE, *STAGES):
                raise UsageError(
                    f"there is no stage {stage!r}; stages are {', '.join(STAGES)}, {PACKAGE}"
                )


class Reporter(Protocol):
    """What the pipeline tells its progress to."""

    def stage(
        self, name: str, state: StageState, seconds: float | None = None, detail: str = ""
    ) -> None:
        """A stage starts (``run``), is up to date (``skip``) or has finished (``done``).

        Args:
            name: Name of the stage.
            state: What happens to it.
            seconds: How long it took, once it is done.
            detail: What else is worth saying.
        """

    def progress(self, label: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of the named work are finished; equal means over.

        Args:
            label: What is under way.
            done: Steps that are finished.
            total: All steps.
        """

    def note(self, text: str) -> None:
        """Something worth a line."""


class NullReporter:
    """Says nothing."""

    def stage(
        self, name: str, state: StageState, seconds: float | None = None, detail: str = ""
    ) -> None:
        """Ignores the change of a stage."""

    def progress(self, label: str, done: int, total: int) -> None:
        """Ignores the progress."""

    def note(self, text: str) -> None:
        """Ignores the note."""
