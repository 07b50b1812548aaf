"""What later stages, pages and programs need of a run's files, checked when they are read.

A file is compared with the hash that its stage noted, so this is for what no hash tells: a file of
another version of the program, or one that was changed together with its hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field, ValidationError
from typing_extensions import NotRequired, TypedDict

from trt_layermerge.core.codec import adapter
from trt_layermerge.core.device import Precision
from trt_layermerge.core.jsonio import Json, damage, read_json, read_lines

STRICT = ConfigDict(strict=True)
Number: TypeAlias = float
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class _Device(TypedDict):
    backend: str
    backend_version: str
    name: str
    settings: str


class _Percentiles(TypedDict):
    p50_ms: Positive
    p90_ms: Positive
    p99_ms: Positive


class _Timed(_Percentiles):
    p10_ms: Positive
    throughput: Positive
    method: Literal["call", "enqueue", "graph"]
    enqueue_ms: Number | None
    power_w: Number | None
    energy_mj: Number | None


class _Ratio(TypedDict):
    speedup: Positive
    low: Positive
    high: Positive


class _Pair(_Ratio):
    precision: Precision
    original: _Timed
    merged: _Timed
    doubts: list[str]


class _Int8(_Ratio):
    over: Precision
    faster: bool


class _State(TypedDict):
    power_mode: str | None


class _Conditions(TypedDict):
    before: _State
    gpu_clock: str


class _Wall(TypedDict):
    original: _Percentiles
    merged: _Percentiles
    comparable: bool
    reason: str | None


class _Untimed(TypedDict):
    precision: Precision
    reason: str


class _AnyBench(TypedDict):
    precision: Precision
    batch: Annotated[int, Field(ge=1)]
    device: _Device
    comparable: bool
    reason: str | None
    untimed: list[_Untimed]


class Bench(_AnyBench):
    """``bench.json`` of networks that were timed."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    original: _Timed
    merged: _Timed
    speedup: Positive
    low: Positive
    high: Positive
    rounds: Count
    spread: str
    precisions: Annotated[list[_Pair], Field(min_length=1)]
    int8: _Int8 | None
    conditions: _Conditions
    power_note: str | None
    wall: _Wall | None


class Untimed(_AnyBench):
    """``bench.json`` where the device is not at hand."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    original: None
    merged: None
    speedup: None
    low: None
    high: None
    precisions: Annotated[list[_Pair], Field(max_length=0)]
    int8: None


class _Accuracies(TypedDict):
    original: Number | None
    merged: Number | None
    drop: Number | None


class _Metric(TypedDict):
    name: str
    original: Number
    repaired: Number
    merged: Number
    drop: Number


class _Comparison(TypedDict):
    name: str
    network: Literal["original", "merged"]
    reason: str | None
    max_abs: Number | None
    max_rel: Number | None
    agreement: Number | None
    accuracy: Number | None
    metric: Number | None
    tolerance: Number | None
    finite: bool | None


class _Change(TypedDict):
    image: Count
    original: str
    original_confidence: Number
    merged: str
    merged_confidence: Number
    picture: str | None


class Verify(TypedDict):
    """``verify.json``."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    images: Count
    on: str
    agreement: Number
    least_agreement: Number
    min_agreement: Number | None
    fidelity: dict[str, dict[str, Any]]
    classes: list[dict[str, Any]]
    changed: list[_Change]
    accuracy: _Accuracies
    comparisons: list[_Comparison]
    unverified: list[str]
    repaired_accuracy: Number | None
    metric: _Metric | None
    failed_gate: str | None


class _Check(TypedDict):
    block: str
    kind: str
    dtype: str
    max_abs_error: Number
    max_rel_error: Number
    tolerance: Number
    ok: bool


class Certificate(TypedDict):
    """``certificate.json``."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    ok: bool
    max_rel_error: Annotated[float, Field(ge=0)]
    checks: list[_Check]


class _Exported(TypedDict):
    file: str
    sha256: str
    input_shape: Annotated[list[int | str], Field(min_length=1)]
    inputs: Annotated[dict[str, Any], Field(min_length=1)]
    notes: list[str]


_Models = TypedDict("_Models", {"original.onnx": _Exported, "model.onnx": _Exported})


class Export(TypedDict):
    """``export.json``."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    models: _Models


class _Fit(TypedDict):
    networks: Count
    median_error: Number | None
    worst_error: Number | None
    spearman: Number | None


class _Prediction(TypedDict):
    fit: _Fit


class _Replaced(TypedDict):
    start: Count
    end: Count
    kind: str
    kept: list[Count]
    convs: Count


class _Stop(TypedDict):
    predicted_ms: Number
    score: Number
    changes: list[_Replaced]


class Frontier(TypedDict):
    """``frontier.json``."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    points: list[Annotated[list[float], Field(min_length=2, max_length=2)]]
    plans: NotRequired[list[_Stop]]
    untouched: Annotated[list[float], Field(min_length=2, max_length=2)]
    overhead_ms: Number
    prediction: _Prediction


class _Finalist(TypedDict):
    predicted_ms: Number
    measured_ms: Positive | None
    error: str | None
    score: Number | None
    joint_score: Number | None
    race_scores: list[float | None] | None
    chosen: bool
    candidates: list[dict[str, Any]]


class Finalists(TypedDict):
    """``finalists.json``."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    finalists: list[_Finalist]


class _Calibrated(TypedDict):
    file: str
    accuracy_fp32: Number | None
    accuracy_int8: Number | None
    agreement: Number | None
    keep_float: list[str]
    layers: list[Any] | dict[str, Any]


class Calibrations(TypedDict):
    """``calibration.json``."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    reason: str | None
    networks: dict[str, _Calibrated]
    calibrated_on: NotRequired[Any]
    judged_on: NotRequired[Any]
    qat: NotRequired[Any]


class _Engine(TypedDict):
    network: str
    precision: Precision
    plan: str | None
    error: str | None


class Build(TypedDict):
    """``build.json``."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    engines: list[_Engine]


class _Epoch(TypedDict):
    epoch: Count
    loss: Number
    val_accuracy: Number | None


class History(TypedDict):
    """``finetune.jsonl``: the header with all rows."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    start: str
    start_val_accuracy: Number | None
    original_val_accuracy: Number | None
    val_metric: dict[str, Number] | None
    reconstruction: Any
    rows: list[_Epoch]


KINDS: Mapping[str, Any] = {
    "bench": Bench | Untimed,
    "verify": Verify,
    "certificate": Certificate,
    "export": Export,
    "frontier": Frontier,
    "finalists": Finalists,
    "calibrations": Calibrations,
    "build": Build,
    "finetune": History,
}
"""What must stand in files of a kind; whatever else does is passed on."""


def read_body(path: Path, kind: str) -> Json:
    """Returns the object of a file that ``write_json`` wrote, its fields as they must be.

    Args:
        path: The file.
        kind: Its schema, one of ``KINDS``.

    Raises:
        UsageError: If there is no such file.
        CorruptInputError: If it is damaged, or a field is missing or malformed.
    """
    return _checked(path, kind, read_json(path, kind))


def read_history(path: Path) -> Json:
    """Returns the header of ``finetune.jsonl``, its ``rows`` beside. Raises as ``read_body``."""
    header, rows = read_lines(path, "finetune")
    return _checked(path, "finetune", {**header, "rows": rows})


def _checked(path: Path, kind: str, body: Json) -> Json:
    with damage(path):
        try:
            adapter(KINDS[kind]).validate_python(body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return body
