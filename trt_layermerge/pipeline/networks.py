"""Whole networks built from plans, to measure what the tables only predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from trt_layermerge.core.candidate import Candidate, original_candidate
from trt_layermerge.core.conv import ConvSpec, Spec
from trt_layermerge.core.device import Precision
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.errors import DeviceError
from trt_layermerge.pipeline.context import Context

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trt_layermerge.measure.meter import Outcome

DEARER = 1.5
"""A merged block may cost this much more arithmetic and still be faster: it is one layer."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A whole network, measured beside the original.

    Attributes:
        plan: What it is.
        ms: Latency: that of the original in the run's first measurement, divided by the speed-up,
            so that a host whose speed changes does not mix clocks.
        ratio: Speed-up over the original, paired by round.
        clock_ms: Latency by the clock of this very measurement, which a budget in ms is held to.
        ratios: Speed-up of each build, where the network was built several times.
        error: Why it could not be built or run; its latency is infinite then.
    """

    plan: MergePlan
    ms: float
    ratio: float
    clock_ms: float
    ratios: tuple[float, ...] = ()
    error: str | None = None


def onnx_of(
    module: nn.Module, example: Tensor, precision: Precision, fallback: Precision = "fp32"
) -> bytes:
    """Returns a network as ONNX bytes at a precision, for timing only: int8 is not calibrated.

    ``fallback`` is the float type of what int8 does not quantise.
    """
    from trt_layermerge.export.fp16 import to_precision
    from trt_layermerge.export.onnx import export_bytes

    model = export_bytes(module, example)
    if precision != "int8":
        return to_precision(model, precision)
    from trt_layermerge.quantize.qdq import quantize_model
    from trt_layermerge.quantize.ranges import fixed_ranges

    return to_precision(quantize_model(model, fixed_ranges(model)), fallback)


def plan_onnx(context: Context, plan: MergePlan) -> bytes:
    """Returns the merged network of a plan as ONNX bytes; its weights are not repaired."""
    from trt_layermerge.merge import collapse, relax

    merged = collapse(relax(context.model, context.graph, plan)).eval()
    precision, fallback = context.recipe.measure.precision, context.fallback
    return onnx_of(merged, context.example, precision, fallback)


def original_onnx(context: Context) -> bytes:
    """Returns the original network as ONNX bytes."""
    precision, fallback = context.recipe.measure.precision, context.fallback
    return onnx_of(context.model, context.example, precision, fallback)


def measure_plans(
    context: Context,
    plans: Sequence[MergePlan],
    reference_ms: float | None,
    rounds: int,
    builds: int = 1,
) -> tuple[float, list[Measured]]:
    """Returns the original's latency and that of each plan, each timed in turns with the original.

    Args:
        context: The run.
        plans: What to build and measure.
        reference_ms: The original's latency in the first measurement; None if this is the first.
        rounds: Bursts of each network.
        builds: How often an engine is built and timed, where building is a matter of luck.

    Raises:
        DeviceError: If this is the first measurement and no network could be built and run.
    """
    models = []
    for count, plan in enumerate(plans):
        context.reporter.progress("building networks", count, len(plans))
        models.append(plan_onnx(context, plan))
    context.reporter.progress("building networks", len(plans), len(plans))
    found = context.meter.networks(
        original_onnx(context),
        models,
        rounds,
        builds,
        lambda done, total: context.reporter.progress("measuring networks", done, total),
    )
    return with_reference(plans, found, reference_ms)


def with_reference(
    plans: Sequence[MergePlan], outcomes: Sequence[Outcome], reference_ms: float | None
) -> tuple[float, list[Measured]]:
    """Returns the original's latency and the plans with what was measured of them.

    Args:
        plans: What was measured.
        outcomes: What came of each.
        reference_ms: The original's latency in the first measurement; None if this is the first.

    Raises:
        DeviceError: If this is the first measurement and all of it failed.
    """
    from trt_layermerge.measure.meter import Failed

    if reference_ms is None:
        errors = [outcome.error for outcome in outcomes if isinstance(outcome, Failed)]
        if len(errors) == len(outcomes):
            raise DeviceError(f"no network could be built and run; the first said: {errors[0]}")
        reference_ms = median(o.original_ms for o in outcomes if not isinstance(o, Failed))
    measured = []
    for plan, outcome in zip(plans, outcomes, strict=True):
        if isinstance(outcome, Failed):
            measured.append(Measured(plan, inf, 0.0, inf, error=outcome.error))
        else:
            ratio = outcome.ratio
            ms = reference_ms / ratio
            measured.append(Measured(plan, ms, ratio, outcome.ms, outcome.ratios))
    return reference_ms, measured


def specs_of(plan: MergePlan) -> tuple[Spec, ...]:
    """Returns everything that a plan's network runs, repetitions included."""
    return tuple(spec for candidate in plan.candidates for spec in candidate.costs)


def useful(
    graph: LayerGraph,
    candidates: Sequence[Candidate],
    table: LatencyTable,
    precision: Precision,
    batch: int,
) -> list[Candidate]:
    """Returns the candidates that are faster than leaving their block as it is."""
    singles = [
        table.cost_ms(original_candidate(graph, i), precision, batch)
        for i in range(len(graph.units))
    ]
    return [
        c
        for c in candidates
        if not c.original
        and table.cost_ms(c, precision, batch) < sum(singles[c.block.start : c.block.end])
    ]


def promising(graph: LayerGraph, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Returns the candidates that may be faster than their block, where no latency is known yet.

    Those with less arithmetic, and those with fewer convolutions and ``DEARER`` times as much at
    most.
    """
    before = [_work(original_candidate(graph, i)) for i in range(len(graph.units))]

    def better(candidate: Candidate) -> bool:
        block = before[candidate.block.start : candidate.block.end]
        macs, convs = sum(m for m, _ in block), sum(c for _, c in block)
        new_macs, new_convs = _work(candidate)
        return new_macs < macs or (new_convs < convs and new_macs <= DEARER * macs)

    return [c for c in candidates if not c.original and better(c)]


def _work(candidate: Candidate) -> tuple[int, int]:
    """Returns multiply-accumulates and number of convolutions of a candidate."""
    convs = [spec for spec in candidate.costs if isinstance(spec, ConvSpec)]
    return sum(spec.macs for spec in convs), len(convs)


def sample_plans(
    graph: LayerGraph, candidates: Sequence[Candidate], count: int, seed: int
) -> list[MergePlan]:
    """Returns random plans from hardly changed to as changed as can be, evenly spread."""
    by_start: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        by_start.setdefault(candidate.block.start, []).append(candidate)
    rng = np.random.default_rng(seed)
    return [_sample(graph, by_start, (number + 1) / (count + 1), rng) for number in range(count)]


def _sample(
    graph: LayerGraph,
    by_start: dict[int, list[Candidate]],
    share: float,
    rng: np.random.Generator,
) -> MergePlan:
    """Walks the chain and replaces a block wherever a draw falls below ``share``."""
    position, chosen = 0, []
    while position < len(graph.units):
        here = by_start.get(position, [])
        if here and rng.random() < share:
            chosen.append(here[int(rng.integers(len(here)))])
            position = chosen[-1].block.end
        else:
            position += 1
    return MergePlan.of(graph, chosen)
