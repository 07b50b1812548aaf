"""Everything the pages show, as plain values: what is not here cannot be claimed there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.report.statistics import Interval, PredictionError, wilson_interval


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of right answers, between 0 and 1, on so many images."""

    value: float
    images: int

    @property
    def interval(self) -> Interval:
        """The 95 % Wilson interval of the share."""
        return wilson_interval(self.value, self.images)


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One non-dominated plan: predicted latency, and the score to maximise."""

    latency_ms: float
    score: float


@dataclass(frozen=True, slots=True)
class Finalist:
    """A plan that was built whole and measured.

    Attributes:
        label: Short name for tables.
        predicted_ms: Latency that the table promised.
        measured_ms: Latency of the whole network.
        score: Value of the objective, or None.
        chosen: Whether this is the plan of the run.
        joint: Minus the loss of the whole network, repaired and not trained, or None.
        race: How good it was after each lap of the race, None where it diverged; empty without one.
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
class Epoch:
    """One row of the fine-tune history; accuracy between 0 and 1, on validation data."""

    epoch: int
    loss: float
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """What one network took; None where it was not measured.

    Attributes:
        p50_ms: Median latency.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        throughput: Images per second.
        enqueue_ms: What the host needs to launch one run on a GPU.
        power_w: Mean power while it runs.
        energy_mj: Energy of one run above idle.
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
    """Both networks at one precision, with the speed-up and its spread over rounds."""

    precision: str
    original: Timing
    merged: Timing
    speedup: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Bench:
    """Both networks side by side, and the speed-up with its spread over rounds.

    Attributes:
        original: The original network at the measured precision.
        merged: The merged network.
        speedup: How often faster it is.
        low: Lower end of the spread.
        high: Upper end.
        spread: What the ends are, in words.
        reason: Why these latencies do not compare with those of other runs, or None.
        pairings: Both networks at every precision that was timed.
        notes: What else is to be known of the figures, one sentence each.
    """

    original: Timing
    merged: Timing
    speedup: float
    low: float
    high: float
    spread: str = "range over rounds"
    reason: str | None = None
    pairings: tuple[Pairing, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunReport:
    """One run. Every part that did not happen is None or empty, and the pages say so.

    Attributes:
        title: Heading of the pages.
        model: Name of the network, as the user typed it.
        device: What was measured on.
        graph: The traced network.
        plan: What was chosen.
        summary: The object of ``summary.json`` (``report.summary``).
        frontier: Every non-dominated plan.
        chosen: Predicted latency and score of the plan of the run.
        original_point: Predicted latency and score of the untouched network.
        finalists: Plans built whole and measured.
        prediction: Prediction error over all plans that were measured.
        accuracies: Test accuracy by name of the network; ``original`` and ``merged`` are compared.
        accuracy_data: What the accuracies were measured on, in words.
        history: Fine-tune rows.
        certificate: The object of ``certificate.json``.
        bench: Latency of both networks.
        calibration: The object of ``calibration.json``.
        verify: The object of ``verify.json``.
        engine: The sidecar of the engine.
        unverified: What nobody checked, one sentence each.
        versions: Version by library.
        seed: Seed of the run.
        recipe: Text of the recipe.
        stage_seconds: Wall-clock seconds by stage.
    """

    title: str
    model: str
    device: DeviceInfo
    graph: LayerGraph
    plan: MergePlan
    summary: Mapping[str, Any] = field(default_factory=dict)
    frontier: tuple[FrontierPoint, ...] = ()
    chosen: FrontierPoint | None = None
    original_point: FrontierPoint | None = None
    finalists: tuple[Finalist, ...] = ()
    prediction: PredictionError | None = None
    accuracies: Mapping[str, Accuracy] = field(default_factory=dict)
    accuracy_data: str = "test images"
    history: tuple[Epoch, ...] = ()
    certificate: Mapping[str, Any] | None = None
    bench: Bench | None = None
    calibration: Mapping[str, Any] | None = None
    verify: Mapping[str, Any] | None = None
    engine: Mapping[str, Any] | None = None
    unverified: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    recipe: str = ""
    stage_seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def measured_ms(self) -> float | None:
        """Measured latency of the merged network: the benchmark's median, or the summary's."""
        if self.bench is not None:
            return self.bench.merged.p50_ms
        value = self.summary.get("merged", {}).get("latency_ms")
        return None if value is None else float(value)

    @property
    def budget_ms(self) -> float | None:
        """The latency that was asked for, or None."""
        value = self.summary.get("budget_ms", self.plan.budget_ms)
        return None if value is None else float(value)

    @property
    def predicted_ms(self) -> float | None:
        """The latency that the table promised for the plan, or None."""
        value = self.summary.get("predicted_ms", self.plan.latency_ms)
        return None if value is None else float(value)
