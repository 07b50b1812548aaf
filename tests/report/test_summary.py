"""``summary.json``: exactly the promised fields, and no figure that is none."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.errors import CorruptInputError
from trt_layermerge.report.summary import NetworkFigures, summary_json

ORIGINAL = NetworkFigures(0.9, 3.2, 21, 19)
MERGED = NetworkFigures(0.89, 2.0, 10, 9)
GOOD: dict[str, Any] = {
    "original": ORIGINAL,
    "merged": MERGED,
    "repaired_accuracy": 0.73,
    "speedup": 1.6,
    "predicted_ms": 2.02,
    "budget_ms": 2.1,
    "certificate_max_rel_error": 0.0,
    "precision": "fp32",
    "backend": "onnxruntime",
    "batch": 1,
    "seed": 0,
    "preprocess": Preprocess(1 / 255, (0.5,), (0.25,)),
    "input_name": "input",
    "input_shape": (1, 3, 32, 32),
}


def test_summary_is_the_promised_object() -> None:
    assert json.loads(json.dumps(summary_json(**GOOD))) == {
        "original": {"accuracy": 0.9, "latency_ms": 3.2, "convs": 21, "activations": 19},
        "repaired": {"accuracy": 0.73},
        "merged": {"accuracy": 0.89, "latency_ms": 2.0, "convs": 10, "activations": 9},
        "speedup": 1.6,
        "predicted_ms": 2.02,
        "budget_ms": 2.1,
        "certificate_max_rel_error": 0.0,
        "precision": "fp32",
        "backend": "onnxruntime",
        "batch": 1,
        "seed": 0,
        "preprocess": {"scale": 1 / 255, "mean": [0.5], "std": [0.25]},
        "input": {"name": "input", "shape": [1, 3, 32, 32]},
    }


def test_what_was_not_measured_is_none() -> None:
    nothing = {
        name: None
        for name in (
            "repaired_accuracy",
            "speedup",
            "predicted_ms",
            "budget_ms",
            "certificate_max_rel_error",
        )
    }
    bare = summary_json(**{**GOOD, **nothing, "original": NetworkFigures(None, None, 21, 19)})
    assert bare["speedup"] is None
    assert bare["original"] == {
        "accuracy": None,
        "latency_ms": None,
        "convs": 21,
        "activations": 19,
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"speedup": math.nan}, "speedup"),
        ({"speedup": 0.0}, "speedup"),
        ({"predicted_ms": math.inf}, "predicted_ms"),
        ({"budget_ms": -1.0}, "budget_ms"),
        ({"repaired_accuracy": 73.0}, "repaired.accuracy"),
        ({"merged": replace(MERGED, accuracy=89.0)}, "merged.accuracy"),
        ({"merged": replace(MERGED, latency_ms=0.0)}, "merged.latency_ms"),
        ({"original": replace(ORIGINAL, convs=-1)}, "original.convs"),
        ({"certificate_max_rel_error": math.nan}, "certificate_max_rel_error"),
        ({"precision": "fp8"}, "precision"),
        ({"batch": 0}, "batch"),
        ({"input_shape": (1, 3, 0, 32)}, "input shape"),
    ],
)
def test_a_figure_out_of_range_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(CorruptInputError, match=named):
        summary_json(**{**GOOD, **change})


def test_all_wrong_figures_are_named_at_once() -> None:
    with pytest.raises(CorruptInputError, match=r"speedup.*predicted_ms"):
        summary_json(**{**GOOD, "speedup": math.nan, "predicted_ms": -1.0})
