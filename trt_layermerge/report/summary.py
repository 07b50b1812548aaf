"""The object of ``summary.json``: the figures of a run that other programs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trt_layermerge.core.device import Precision
from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import CorruptInputError

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Positive: TypeAlias = Annotated[float, Field(gt=0)]
Size: TypeAlias = Annotated[int, Field(gt=0)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Count: TypeAlias = Annotated[int, Field(ge=0)]

WHERE_THERE_IS_ONE = ("metric", "failed_gates")
"""Fields that stand there only where they have something to say."""


class _Repaired(BaseModel):
    model_config = STRICT
    accuracy: Share | None


class _Network(_Repaired):
    latency_ms: Positive | None
    convs: Count
    activations: Count
    latency_p10_ms: Positive | None
    latency_p90_ms: Positive | None


class _Input(BaseModel):
    name: str
    shape: list[Size]


class _Metric(BaseModel):
    name: str
    original: float
    repaired: float
    merged: float


class _Summary(BaseModel):
    """``summary.json``; None where something was not measured."""

    model_config = STRICT
    original: _Network
    repaired: _Repaired
    merged: _Network
    speedup: Positive | None
    predicted_ms: Positive | None
    budget_ms: Positive | None
    certificate_max_rel_error: Annotated[float, Field(ge=0)] | None
    precision: Precision
    backend: str
    batch: Size
    seed: int
    preprocess: dict[str, Any]
    input: _Input
    speedup_low: Positive | None
    speedup_high: Positive | None
    device: str
    notes: list[str]
    agreement: Share | None
    compared_on: str
    metric: _Metric | None = None
    failed_gates: list[str] = []


def checked_summary(body: Mapping[str, Any]) -> Json:
    """Returns the object of ``summary.json``, with exactly the promised fields.

    Args:
        body: The same fields, not yet checked. Accuracies are shares between 0 and 1; what was
            not measured is None.

    Raises:
        CorruptInputError: If a figure is missing, not finite or out of its range; all are named.
    """
    try:
        found = _Summary.model_validate(body).model_dump()
        return {k: v for k, v in found.items() if v or k not in WHERE_THERE_IS_ONE}
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, fault['loc']))} {fault['input']!r}: {fault['msg'].lower()}"
            for fault in error.errors()
        )
        raise CorruptInputError(
            f"the summary of this run is not usable: {wrong}; "
            "repeat the stage that measured it: trt-layermerge bench, verify or merge"
        ) from None
