"""``summary.json``: exactly the promised fields, and no figure that is none."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest

from tests.report import fakes
from trt_layermerge.errors import CorruptInputError
from trt_layermerge.report.summary import checked_summary

MISSING = object()
GOOD: dict[str, Any] = {
    "original": fakes.network(0.9, 3.2, 21, 19),
    "repaired": {"accuracy": 0.73},
    "merged": fakes.network(0.89, 2.0, 10, 9),
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
    "speedup_low": 1.5,
    "speedup_high": 1.7,
    "device": "Example CPU",
    "notes": [],
    "agreement": 0.97,
    "compared_on": "96 test images",
}


def test_summary_is_the_promised_object_in_the_promised_order() -> None:
    written = checked_summary(GOOD)
    assert written == GOOD
    assert list(written) == list(GOOD)
    assert list(written["merged"]) == list(GOOD["merged"])


def test_what_was_not_measured_is_none() -> None:
    nothing: dict[str, Any] = dict.fromkeys(("accuracy", "latency_ms"))
    nothing |= dict.fromkeys(("latency_p10_ms", "latency_p90_ms"))
    figures = ("speedup", "predicted_ms", "budget_ms", "certificate_max_rel_error")
    figures += ("speedup_low", "speedup_high")
    body = {
        **GOOD,
        **dict.fromkeys(figures),
        "original": {**GOOD["original"], **nothing},
        "repaired": {"accuracy": None},
    }
    assert checked_summary(body) == body


def changed(place: str, value: object) -> dict[str, Any]:
    """Returns the good summary with another value at ``outer.inner``, or without it."""
    body = copy.deepcopy(GOOD)
    *outer, last = place.split(".")
    inner = body[outer[0]] if outer else body
    inner.pop(last) if value is MISSING else inner.update({last: value})
    return body


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("speedup", math.nan),
        ("speedup", 0.0),
        ("speedup", MISSING),
        ("predicted_ms", math.inf),
        ("budget_ms", -1.0),
        ("repaired.accuracy", 73.0),
        ("merged.accuracy", 89.0),
        ("merged.latency_ms", 0.0),
        ("merged.latency_ms", MISSING),
        ("original.convs", -1),
        ("certificate_max_rel_error", math.nan),
        ("precision", "fp8"),
        ("batch", 0),
        ("input.shape", [1, 3, 0, 32]),
        ("surplus", 1.0),
    ],
)
def test_a_figure_out_of_range_is_refused_by_name(place: str, value: object) -> None:
    with pytest.raises(CorruptInputError, match=re.escape(place)):
        checked_summary(changed(place, value))


def test_all_wrong_figures_are_named_at_once() -> None:
    with pytest.raises(CorruptInputError, match=r"speedup nan.*predicted_ms -1"):
        checked_summary({**GOOD, "speedup": math.nan, "predicted_ms": -1.0})
