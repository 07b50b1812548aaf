"""How long the rest of a run will take: told when it begins, corrected by what stages took."""

from __future__ import annotations

from collections.abc import Sequence

from trt_layermerge.pipeline.folder import stage_seconds
from trt_layermerge.pipeline.options import duration
from trt_layermerge.pipeline.run import Run

WORTH_TELLING_S = 60.0
"""Less is over before anybody has read it."""


class Expected:
    """The expectation of one run, for as long as it goes on."""

    def __init__(self, run: Run) -> None:
        """Expects nothing of a run yet."""
        self._run = run
        self._left: dict[str, float] | None = None
        self._worth_telling = False
        self._promised_s = self._took_s = 0.0

    def begin(self, stages: Sequence[str]) -> None:
        """Tells what the stages that are left will take; only the first time that it is called."""
        if self._left is not None:
            return
        from trt_layermerge.session.estimate import Speed, estimate

        run, session = self._run, self._run.session
        speed = Speed.of(session.model, session.example, session.macs)
        found = estimate(
            session.graph,
            session.candidates,
            session.macs,
            speed,
            session.settings,
            None if run.recipe.data.train is None else len(run.train),
        )
        known = {name: getattr(found, name, None) for name in stages}
        self._left = {name: seconds for name, seconds in known.items() if seconds}
        self._worth_telling = sum(self._left.values()) >= WORTH_TELLING_S
        if self._worth_telling:
            parts = ", ".join(f"{name} {duration(s)}" for name, s in self._left.items())
            run.reporter.note(
                f"here, on {speed.threads} threads, this will take about "
                f"{duration(sum(self._left.values()))}: {parts}"
            )

    def done(self, stage: str) -> None:
        """Corrects what is left by what a stage took, and tells it."""
        promised_s = (self._left or {}).pop(stage, None)
        if promised_s is None:
            return
        took_s = stage_seconds(self._run.folder)[stage]
        self._promised_s += promised_s
        self._took_s += took_s
        left_s = self._took_s / self._promised_s * sum((self._left or {}).values())
        if self._worth_telling and left_s > 0:
            self._run.reporter.note(
                f"{stage} took {duration(took_s)}, {duration(promised_s)} were expected; about "
                f"{duration(left_s)} are left"
            )
