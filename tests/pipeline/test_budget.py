"""What a search hands on keeps the budget, with the headroom asked for, when measured again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import InfeasibleBudgetError
from trt_layermerge.measure.meter import BackendMeter, Beside, Outcome
from trt_layermerge.measure.timing import Timing
from trt_layermerge.pipeline.api import run_stage
from trt_layermerge.pipeline.options import RunOptions


def searched(runs: Path, **wanted: float) -> Json:
    """Returns ``plan.json`` of a search for which nothing is trained and no plan is drawn."""
    settings = {"race_steps": 0, "samples": 0, **wanted}
    asked = {f"search.{key}": value for key, value in settings.items()}
    return run_stage("search", RunOptions("tiny", runs, overrides=asked))


def slowed(timing: Timing, factor: float) -> Timing:
    times = (tuple(factor * ms for ms in took) for took in (timing.round_ms, timing.runs_ms))
    return replace(timing, round_ms=next(times), runs_ms=next(times))


def flatter(monkeypatch: pytest.MonkeyPatch, among: int) -> list[bytes]:
    """Makes the first ``among`` networks that are measured twice take thrice as long then.

    Returns the networks that were measured twice, as they come.
    """
    measure, seen, again = BackendMeter.networks, set[bytes](), list[bytes]()

    def networks(
        self: BackendMeter, original: bytes, others: Sequence[bytes], *rest: Any
    ) -> list[Outcome]:
        found = measure(self, original, others, *rest)
        for place, model in enumerate(others):
            if model not in seen:
                seen.add(model)
                continue
            again.append(model)
            if len(again) <= among:
                outcome = found[place]
                assert isinstance(outcome, Beside)
                pairs = tuple((first, slowed(other, 3.0)) for first, other in outcome.builds)
                found[place] = replace(outcome, builds=pairs)
        return found

    monkeypatch.setattr(BackendMeter, "networks", networks)
    return again


def test_no_plan_is_handed_on_that_is_too_slow_when_measured_again(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = flatter(monkeypatch, among=99)
    with pytest.raises(InfeasibleBudgetError, match=r"slower than .* when measured again"):
        searched(runs, speedup=1.3)
    assert len(again) == len(set(again)) > 1


def test_the_next_best_is_taken_where_the_best_is_too_slow_when_measured_again(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = searched(runs, speedup=1.3)
    again = flatter(monkeypatch, among=1)
    plan = searched(runs, speedup=1.3001)  # else nothing has changed, and nothing is done
    assert len(again) == 2
    assert plan["candidates"] != best["candidates"]
    assert plan["measured_ms"] <= plan["budget_ms"]


def test_headroom_is_left_where_it_can_be(runs: Path) -> None:
    tight, roomy = (searched(runs, speedup=1.2, headroom=share) for share in (0.0, 0.15))
    assert tight["budget_ms"] == roomy["budget_ms"]
    assert 0.85 * tight["budget_ms"] < tight["measured_ms"] <= tight["budget_ms"]
    assert roomy["measured_ms"] <= 0.85 * roomy["budget_ms"]
