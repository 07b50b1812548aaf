"""What the rows of the glyph study say, before it is put into words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from benchmarks.studies.arms import ARMS, COURSES, PAST
from benchmarks.studies.choosing import TOLERANCE, is_near
from benchmarks.studies.packed import unpack
from benchmarks.studies.statistics import Grouped, Interval
from benchmarks.studies.tuning import choice
from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import UsageError

Hits = NDArray[np.bool_]

ARM_COURSES = {arm.name: arm.course for arm in (*ARMS, *PAST)}

FINISH = "finish the study first (python -m benchmarks.studies.glyphs)"

VARIANT = "ours-"
"""How the names of arms begin that train the plans of ours in another way."""


@dataclass(frozen=True)
class Cell:
    """One arm at one wanted speed-up of one network.

    Attributes:
        arm: Its name.
        wanted: The speed-up that was asked for.
        plans: Rows of its plans: one, or one for each seed.
        speedups: Their measured speed-ups.
        trainings: Rows of its trainings by seed.
        rate: Learning rate that was chosen.
        hits: Which test images the trained networks get right, ``(seeds, N)``.
        untrained: The same before training, ``(plans, N)``.
    """

    arm: str
    wanted: float
    plans: list[Json]
    speedups: list[float]
    trainings: list[Json]
    rate: float
    hits: Hits
    untrained: Hits

    @property
    def speedup(self) -> float:
        """Measured speed-up, the mean over the plans."""
        return float(np.mean(self.speedups))

    @property
    def on_target(self) -> bool:
        """Whether every plan measured within the tolerance of the wanted latency."""
        return all(is_near(1 / s, 1 / self.wanted) for s in self.speedups)

    def comparable(self, other: Cell) -> bool:
        """Whether two cells have about the same latency; each may be off by the tolerance."""
        return abs(self.speedup / other.speedup - 1) <= 2 * TOLERANCE

    @property
    def untouched(self) -> bool:
        """Whether nothing was replaced."""
        return not any(plan["candidates"] or "pruned" in plan for plan in self.plans)

    @property
    def variant(self) -> bool:
        """Whether it trains the plans of ours in another way."""
        return self.arm.startswith(VARIANT)

    @property
    def seconds(self) -> float:
        """Seconds of start and training on one core, the mean over the seeds."""
        return float(np.mean([row["start_s"] + row["seconds"] for row in self.trainings]))

    @property
    def start_val(self) -> float:
        """Accuracy on ``val`` before training, the mean over the seeds."""
        return float(np.mean([row["start_val"] for row in self.trainings]))

    @property
    def first_val(self) -> float:
        """Accuracy on ``val`` after the first epoch, the mean over the seeds; the end's without."""
        return float(np.mean([(row["history"] or [row["val"]])[0] for row in self.trainings]))

    @property
    def val(self) -> float:
        """Accuracy on ``val`` after training, the mean over the seeds."""
        return float(np.mean([row["val"] for row in self.trainings]))


class NetworkFigures:
    """The results of one network."""

    def __init__(self, rows: list[Json], name: str, rates: list[float]) -> None:
        self.name, self._rates = name, rates
        self._rows = [row for row in rows if row.get("network") == name]
        self.facts = self._of("network")[0]

    def _of(self, kind: str) -> list[Json]:
        return [row for row in self._rows if row["kind"] == kind]

    @cached_property
    def _seeds(self) -> list[int]:
        return sorted({row["seed"] for row in self._of("training")})

    @property
    def tables(self) -> list[Json]:
        """Rows of the importance tables."""
        return self._of("table")

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Label of every test image."""
        return unpack(self._of("images")[0]["labels"])

    @cached_property
    def grouped(self) -> Grouped:
        """The test images by font."""
        return Grouped(unpack(self._of("images")[0]["groups"]))

    @cached_property
    def by(self) -> str:
        """What joins images into groups."""
        return str(self._of("images")[0]["by"])

    @cached_property
    def _tests(self) -> Mapping[tuple[object, ...], Hits]:
        return {
            (r["plan"], r["course"], r["rate"], r["seed"]): unpack(r["classes"]) == self.labels
            for r in self._of("test")
        }

    @cached_property
    def original(self) -> Hits:
        """Which test images the original gets right, ``(1, N)``."""
        return self._tests[None, None, None, None][None]

    @cached_property
    def device(self) -> str:
        """Where latency was measured."""
        return str(self._of("latency")[-1]["device"])

    @cached_property
    def original_ms(self) -> float:
        """Latency of the original."""
        return float(self._of("latency")[-1]["original_ms"])

    @cached_property
    def cells(self) -> dict[tuple[str, float], Cell]:
        """Every arm at every speed-up, the slowest first, arms as ``ARMS`` has them."""
        wanted = {(row["arm"], row["speedup"]) for row in self._of("plan")}
        names = list(ARM_COURSES)
        order = sorted(wanted, key=lambda key: (key[1], names.index(key[0])))
        return {key: self._cell(*key) for key in order}

    @cached_property
    def given_up(self) -> list[Json]:
        """Trainings that no cell counts, and that chose no learning rate: judged on ``val``."""
        plans = {row["plan"] for row in self._of("plan")}
        fixed = {rate for course in COURSES.values() for rate in course.rates or ()}
        known = {*self._rates, *fixed}
        rows = self._of("training")
        return [row for row in rows if row["plan"] not in plans or row["rate"] not in known]

    def _cell(self, arm: str, wanted: float) -> Cell:
        plans = [r for r in self._of("plan") if (r["arm"], r["speedup"]) == (arm, wanted)]
        measured = {r["plan"]: float(r["speedup"]) for r in self._of("latency")}
        course, rate = ARM_COURSES[arm], self.rate(arm)
        rows = {(r["plan"], r["course"], r["rate"], r["seed"]): r for r in self._of("training")}
        done = {row["seed"] for key, row in rows.items() if key[1:3] == (course, rate)}
        by_seed = {seed: _pick(plans, seed) for seed in self._seeds if seed in done}
        keys = [(plan["plan"], course, rate, seed) for seed, plan in by_seed.items()]
        missing = [key for key in keys if key not in rows or key not in self._tests]
        if missing:
            raise UsageError(
                f"{self.name} {arm} at {wanted:g}x lacks the training or test {missing[0]}; "
                f"{FINISH}"
            )
        start = COURSES[course].start
        before = [self._tests[plan["plan"], start, None, None] for plan in plans]
        return Cell(
            arm,
            wanted,
            plans,
            [measured[plan["plan"]] for plan in plans],
            [rows[key] for key in keys],
            rate,
            np.stack([self._tests[key] for key in keys]),
            np.stack(before),
        )

    def rate(self, arm: str) -> float:
        """Returns the learning rate that an arm chose on ``val``.

        Raises:
            UsageError: If it has not chosen one yet.
        """
        course, seed = ARM_COURSES[arm], self._seeds[0]
        plans = [row for row in self._of("plan") if row["arm"] == arm]
        speedups = list(dict.fromkeys(row["speedup"] for row in plans))
        tried = {
            (_pick([row for row in plans if row["speedup"] == s], seed)["plan"], s)
            for s in speedups
        }
        found = {
            (row["rate"], speedup): row["val"]
            for row in self._of("training")
            for plan, speedup in tried
            if (row["plan"], row["course"], row["seed"]) == (plan, course, seed)
        }
        chosen = choice(COURSES[course].rates or self._rates, speedups, found)
        if chosen is None:
            raise UsageError(f"{self.name} {arm} has not chosen its learning rate; {FINISH}")
        return chosen

    def accuracy(self, hits: Hits) -> Interval:
        """Returns accuracy with its interval."""
        return self.grouped.accuracy(hits)

    def against(self, first: Hits, second: Hits) -> Interval:
        """Returns how much more accurate the first is."""
        return self.grouped.difference(first, second)


def _pick(plans: list[Json], seed: int) -> Json:
    """Returns the plan that a seed trains: its own, or the only one."""
    return next((plan for plan in plans if plan["pick"] == seed and len(plans) > 1), plans[0])
