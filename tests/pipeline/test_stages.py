"""Single stages of the tiny project, each beside what it was made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from trt_layermerge.pipeline.api import open_run
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.pipeline.stages.importance import to_score


def context(runs: Path, **overrides: object) -> Context:
    """Returns the context of the tiny run with values of its recipe replaced."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return open_run(None, RunOptions("tiny", runs, overrides=dotted), NullReporter())


@pytest.mark.parametrize(("method", "units"), [("calibrate", 0), ("finetune", 7)])
def test_untouched_units_are_scored_where_all_are_trained_anew(
    runs: Path, method: str, units: int
) -> None:
    chosen = to_score(context(runs, importance__method=method))
    assert sum(c.original for c in chosen) == units
    assert any(not c.original for c in chosen)
