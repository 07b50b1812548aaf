"""Plans drawn around the best one are scored whole, and measured where they are truly better."""

from __future__ import annotations

from pathlib import Path

import pytest

from trt_layermerge.core.jsonio import read_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.pipeline import repaired
from trt_layermerge.pipeline.api import open_run
from trt_layermerge.pipeline.choosing import tools_of
from trt_layermerge.pipeline.closing import Closed, close_loop
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.joint import JointScores, draw, widen
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.pipeline.stages.search import _networks


@pytest.fixture
def context(runs: Path) -> Context:
    return open_run(None, RunOptions("tiny", runs), NullReporter())


def looped(context: Context, limit_ms: float) -> Closed:
    return close_loop(limit_ms, 2, 2, tools_of(context, *_networks(context)))


def limit(context: Context) -> float:
    original_ms, _ = _networks(context)
    return original_ms / 1.3


def score_by(monkeypatch: pytest.MonkeyPatch, asked: list[MergePlan], better: bool) -> None:
    """Scores plans by the number of changed blocks, for or against what the sums like."""

    def joint_delta(_: Context, plan: MergePlan) -> float:
        asked.append(plan)
        return float(len(plan.changed)) if better else -1.0

    monkeypatch.setattr(repaired, "joint_delta", joint_delta)


def test_drawn_plans_are_predicted_within_the_limit(context: Context) -> None:
    plans = draw(context, context.latency, limit(context))
    assert len(plans) > 2
    assert all((plan.latency_ms or 0.0) <= limit(context) for plan in plans)
    assert any(all(c.kind != "fit" for c in plan.changed) for plan in plans)
    assert any(any(c.kind == "fit" for c in plan.changed) for plan in plans)


def test_better_wholes_are_measured_and_join_the_finalists(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[MergePlan] = []
    score_by(monkeypatch, asked, better=True)
    closed = looped(context, limit(context))
    before = list(closed.finalists)
    scores = JointScores(context)
    widen(context, tools_of(context, *_networks(context)), closed, limit(context), scores)
    added = closed.finalists[len(before) :]
    assert 0 < len(added) <= context.recipe.search.finalists
    best = max(len(f.plan.changed) for f in before if f.ms <= limit(context))
    for finalist in added:
        assert len(finalist.plan.changed) > best
        assert finalist.measured is not None
        # Its score is that of the true table, not of the perturbed one that it was drawn by.
        expected = sum(context.importance[c].delta for c in finalist.plan.changed)
        assert finalist.plan.score == pytest.approx(expected)
    assert len({plan.candidates for plan in asked}) == len(asked) == len(scores.known)


def test_what_is_not_better_is_not_built(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[MergePlan] = []
    score_by(monkeypatch, asked, better=False)
    closed = looped(context, limit(context))
    before = list(closed.finalists)
    tools = tools_of(context, *_networks(context))
    widen(context, tools, closed, limit(context), JointScores(context))
    assert len(asked) > len(before)
    assert closed.finalists == before


def test_the_chosen_plan_has_the_best_whole_score_of_those_that_meet_the_budget(
    context: Context,
) -> None:
    rows = read_json(context.folder / "finalists.json", "finalists")["finalists"]
    scored = [row for row in rows if row["joint_score"] is not None]
    (chosen,) = [row for row in rows if row["chosen"]]
    assert len(scored) > 1
    assert chosen["joint_score"] == max(row["joint_score"] for row in scored)
