"""Everything the pages show, as plain values: what is not here cannot be claimed there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from trt_layermerge.core.candidate import Change
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.kinds import kinds_of

Point: TypeAlias = tuple[float, float]
Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Look:
    """How a kind of replacement appears: a few words, and a colour (best one of the palette)."""

    label: str
    colour: str


def known_looks() -> dict[str, Look]:
    """Returns how every known kind appears, by its name."""
    return {kind.name: Look(kind.label, kind.colour) for kind in kinds_of()}


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of right answers, between 0 and 1, on so many images."""

    value: float
    images: int

    @property
    def interval(self) -> Interval:
        """The 95 % score interval of the share (E. B. Wilson, 1927).

        No images, or a share that is not between 0 and 1, say nothing: (0, 1).
        """
        from scipy.stats import binomtest  # takes a second to import

        if self.images <= 0 or not 0 <= self.value <= 1:
            return 0.0, 1.0
        right = round(self.value * self.images)
        found = binomtest(right, self.images).proportion_ci(method="wilson")
        return float(found.low), float(found.high)

    def minus(self, other: Accuracy) -> Interval:
        """Returns the 95 % interval of the difference (R. G. Newcombe, 1998, method 10).

        The samples count as independent. Two networks judged on the same images agree on most of
        them, so the true interval is narrower.
        """
        (low, high), (other_low, other_high) = self.interval, other.interval
        difference = self.value - other.value
        return (
            difference - math.hypot(self.value - low, other_high - other.value),
            difference + math.hypot(high - self.value, other.value - other_low),
        )


@dataclass(frozen=True, slots=True)
class Finalist:
    """A plan that was built whole and measured.

    ``score`` is the objective, ``joint`` minus the loss of the whole network, repaired and not
    trained; ``race`` says how good it was after each rung, None where it diverged.
    """

    label: str
    predicted_ms: float
    measured_ms: float
    score: float | None = None
    chosen: bool = False
    joint: float | None = None
    race: tuple[float | None, ...] = ()

    @property
    def relative_error(self) -> float:
        """``predicted / measured − 1``: negative where the network is slower than promised."""
        return self.predicted_ms / self.measured_ms - 1 if self.measured_ms else float("nan")


@dataclass(frozen=True, slots=True)
class Stop:
    """A plan that could be chosen instead: predicted latency, score, and what it changes."""

    latency_ms: float
    score: float
    changes: tuple[Change, ...]
    measured_ms: float | None = None
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class PredictionError:
    """How predicted latencies compare with measured ones, over ``count`` whole networks.

    ``median`` and ``worst`` are of ``|predicted / measured − 1|``, ``spearman`` is of the ranks.
    """

    count: int
    median: float
    worst: float
    spearman: float | None = None


@dataclass(frozen=True, slots=True)
class Epoch:
    """One row of the fine-tune history; accuracy between 0 and 1, on validation data."""

    epoch: int
    loss: float
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """What one network took; None where it was not measured.

    Percentiles of the latency, images a second, what the host needs to launch one run on a GPU,
    mean power while it runs, and energy of one run above idle.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    throughput: float | None = None
    enqueue_ms: float | None = None
    power_w: float | None = None
    energy_mj: float | None = None


@dataclass(frozen=True, slots=True)
class Pairing:
    """Both networks at one precision, and the speed-up with the ends of its spread over rounds."""

    precision: str
    original: Timing
    merged: Timing
    speedup: float
    low: float
    high: float

    @property
    def sides(self) -> tuple[tuple[str, Timing], ...]:
        """Both networks by name."""
        return ("original", self.original), ("merged", self.merged)


@dataclass(frozen=True, slots=True)
class Bench(Pairing):
    """Both networks at the precision of the run, and ``pairings`` at every one that was timed.

    ``spread`` says what its ends are, ``reason`` why these latencies do not compare with those of
    other runs, and ``notes`` what else is to be known of the figures.
    """

    spread: str = "range over rounds"
    reason: str | None = None
    pairings: tuple[Pairing, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Changed:
    """An image whose answer merging changed: classes with their probabilities, before and after.

    ``picture`` is a JPEG in base64, or None where the input is no image.
    """

    image: int
    before: str
    was_sure: float
    after: str
    is_sure: float
    picture: str | None = None

    @property
    def words(self) -> str:
        """The same in words."""
        return f"{self.before} to {self.after}"


@dataclass(frozen=True)
class RunReport:
    """One run, every latency on one clock. The pages say which parts are None or empty.

    Attributes:
        model: Name of the network, as the user typed it.
        kinds: How each kind of replacement appears; one that is not here appears by its name.
        summary: The object of ``summary.json``; ``certificate``, ``calibration`` and ``verify``
            are those of their files, ``engine`` is the sidecar.
        folder: Where the run is, for the commands that the pages tell.
        frontier: Predicted latency and score (to maximise) of every non-dominated plan.
        stops: Some of these plans and the chosen one, by rising latency.
        untouched: The same of the original network.
        prediction: Error over all networks that were measured, finalists or not.
        accuracies: Test accuracy by name of the network; ``original`` and ``merged`` are compared.
        accuracy_data: What the accuracies were measured on, in words.
        unverified: What nobody checked, one sentence each.
        failed_gates: Which limits are exceeded, a paragraph each: the first thing on the page.
        changed: Images whose answer is another one since.
        versions: Version by library.
        stage_seconds: Wall-clock seconds by stage.
    """

    title: str
    model: str
    device: DeviceInfo
    graph: LayerGraph
    plan: MergePlan
    kinds: Mapping[str, Look] = field(default_factory=known_looks)
    summary: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path("runs/NAME")
    frontier: tuple[Point, ...] = ()
    stops: tuple[Stop, ...] = ()
    untouched: Point | None = None
    finalists: tuple[Finalist, ...] = ()
    prediction: PredictionError | None = None
    accuracies: Mapping[str, Accuracy] = field(default_factory=dict)
    accuracy_data: str = "test images"
    changed: tuple[Changed, ...] = ()
    history: tuple[Epoch, ...] = ()
    certificate: Mapping[str, Any] | None = None
    bench: Bench | None = None
    calibration: Mapping[str, Any] | None = None
    verify: Mapping[str, Any] | None = None
    engine: Mapping[str, Any] | None = None
    unverified: tuple[str, ...] = ()
    failed_gates: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    recipe: str = ""
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
