"""The object of ``summary.json``: the figures of a run that other programs read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TypeAlias

from trt_layermerge.core.device import PRECISIONS, Precision
from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.errors import CorruptInputError

Figures: TypeAlias = Mapping[str, float | None]
TINY = math.ulp(0.0)
"""The smallest figure above 0."""


@dataclass(frozen=True, slots=True)
class NetworkFigures:
    """What is known of one network; None where it was not measured.

    Attributes:
        accuracy: Share of right answers, between 0 and 1.
        latency_ms: Measured latency.
        convs: Number of convolutions.
        activations: Number of activations.
    """

    accuracy: float | None
    latency_ms: float | None
    convs: int
    activations: int


def summary_json(
    *,
    original: NetworkFigures,
    merged: NetworkFigures,
    repaired_accuracy: float | None,
    speedup: float | None,
    predicted_ms: float | None,
    budget_ms: float | None,
    certificate_max_rel_error: float | None,
    precision: Precision,
    backend: str,
    batch: int,
    seed: int,
    preprocess: Preprocess,
    input_name: str,
    input_shape: tuple[int, ...],
) -> Json:
    """Returns the checked object of ``summary.json``; accuracies lie between 0 and 1.

    Raises:
        CorruptInputError: If a figure is not finite or out of its range; all are named.
    """
    wrong = _faults(
        above={
            "original.latency_ms": original.latency_ms,
            "merged.latency_ms": merged.latency_ms,
            "speedup": speedup,
            "predicted_ms": predicted_ms,
            "budget_ms": budget_ms,
        },
        shares={
            "original.accuracy": original.accuracy,
            "repaired.accuracy": repaired_accuracy,
            "merged.accuracy": merged.accuracy,
        },
        counts={
            "original.convs": original.convs,
            "original.activations": original.activations,
            "merged.convs": merged.convs,
            "merged.activations": merged.activations,
            "certificate_max_rel_error": certificate_max_rel_error,
        },
    )
    if precision not in PRECISIONS:
        wrong.append(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if batch < 1 or any(n < 1 for n in input_shape):
        wrong.append(f"batch {batch} or input shape {input_shape} is not positive")
    if wrong:
        raise CorruptInputError(
            f"the summary of this run is not usable: {'; '.join(wrong)}; "
            "repeat the stage that measured it: trt-layermerge bench, verify or merge"
        )
    return {
        "original": asdict(original),
        "repaired": {"accuracy": repaired_accuracy},
        "merged": asdict(merged),
        "speedup": speedup,
        "predicted_ms": predicted_ms,
        "budget_ms": budget_ms,
        "certificate_max_rel_error": certificate_max_rel_error,
        "precision": precision,
        "backend": backend,
        "batch": batch,
        "seed": seed,
        "preprocess": preprocess.to_json(),
        "input": {"name": input_name, "shape": list(input_shape)},
    }


def _faults(above: Figures, shares: Figures, counts: Figures) -> list[str]:
    """Returns a sentence for every figure out of its range: above 0, 0 to 1, not below 0."""
    return [
        *(f"{k} {v!r} is not above 0" for k, v in above.items() if not _within(v, TINY)),
        *(f"{k} {v!r} is not in 0…1" for k, v in shares.items() if not _within(v, 0, 1)),
        *(f"{k} {v!r} is negative or not finite" for k, v in counts.items() if not _within(v, 0)),
    ]


def _within(value: float | None, low: float, high: float = math.inf) -> bool:
    """Whether a value is absent, or finite and in the closed range."""
    return value is None or (math.isfinite(value) and low <= value <= high)
