"""Whole networks built from plans, to measure what the tables only predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import inf
from statistics import median
from typing import Any

from torch import nn

from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.device import Precision
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import DeviceError
from trt_layermerge.export.fp16 import to_precision
from trt_layermerge.export.onnx import export_bytes
from trt_layermerge.measure.meter import Failed, Meter, Outcome
from trt_layermerge.merge import collapse, relax
from trt_layermerge.merge.relax import retrace
from trt_layermerge.quantize.qdq import quantize_model
from trt_layermerge.quantize.ranges import fixed_ranges
from trt_layermerge.search.evaluator import Measured
from trt_layermerge.tracing import TracedNetwork

HELD_BYTES = 1 << 29
"""Of whole networks that are timed in turns; what is more is timed in another run."""


def onnx_of(
    module: nn.Module,
    example: Any,
    precision: Precision,
    fallback: Precision = "fp32",
    *,
    timed: bool = True,
) -> bytes:
    """Returns a network as ONNX bytes at a precision, for timing only: int8 is not calibrated.

    Weights that half precision cannot hold, as of a plan that is not repaired yet, are cut off.

    Args:
        module: The network, in eval mode.
        example: An input ``(N, C, H, W)``, or several (``core.inputs``).
        precision: What to type it for.
        fallback: The float type of what int8 does not quantise.
        timed: False to have such weights refused.

    Raises:
        UnsupportedModelError: If it cannot be exported, or typed so.
    """
    model = export_bytes(module, example)
    if precision != "int8":
        return to_precision(model, precision, timed=timed)
    return to_precision(quantize_model(model, fixed_ranges(model)), fallback, timed=timed)


@dataclass(frozen=True)
class Networks:
    """The networks of plans, and how they are timed beside the original.

    Attributes:
        model: The original network, in eval mode.
        graph: What was traced of it.
        example: An input ``(N, C, H, W)``, or several, of the batch that is measured.
        precision: Precision of all of them.
        fallback: The float type of what int8 does not quantise.
        meter: What measures.
        tell: What is called meanwhile.
    """

    model: nn.Module
    graph: LayerGraph
    example: Any
    precision: Precision
    fallback: Precision
    meter: Meter
    tell: Callbacks

    @cached_property
    def original_onnx(self) -> bytes:
        """The original network as ONNX."""
        return onnx_of(self.model, self.example, self.precision, self.fallback)

    @cached_property
    def traced(self) -> TracedNetwork:
        """The original, traced once for all plans; nobody may change it."""
        return retrace(self.model, self.graph)

    def plan_onnx(self, plan: MergePlan) -> bytes:
        """Returns the merged network of a plan as ONNX; its weights are not repaired."""
        merged = collapse(relax(self.traced, self.graph, plan)).eval()
        return onnx_of(merged, self.example, self.precision, self.fallback)

    def measure(
        self,
        plans: Sequence[MergePlan],
        reference_ms: float | None,
        rounds: int,
        builds: int = 1,
    ) -> tuple[float, list[Measured]]:
        """Returns the original's latency and that of each plan, timed in turns with the original.

        Args:
            plans: What to build and measure.
            reference_ms: The original's latency in the first measurement; None if this is it.
            rounds: Bursts of each network.
            builds: How often an engine is built and timed, where building is a matter of luck.

        Raises:
            DeviceError: If this is the first measurement and no network could be built and run.
        """
        at_a_time = max(1, HELD_BYTES // len(self.original_onnx))
        found: list[Outcome] = []
        for start in range(0, len(plans), at_a_time):
            models = []
            for count, plan in enumerate(plans[start : start + at_a_time], start):
                self.tell.progress("building networks", count, len(plans))
                models.append(self.plan_onnx(plan))
            self.tell.progress("building networks", start + len(models), len(plans))
            found += self.meter.networks(
                self.original_onnx,
                models,
                rounds,
                builds,
                partial(self._measured, start, len(plans)),
            )
        return with_reference(plans, found, reference_ms)

    def _measured(self, before: int, total: int, done: int, _: int) -> None:
        self.tell.progress("measuring networks", before + done, total)


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
            measured.append(Measured(plan, reference_ms / ratio, ratio, outcome.ms, outcome.ratios))
    return reference_ms, measured
