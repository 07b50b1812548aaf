from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import studies.choosing as choosing
from studies.arms import ARMS, Arm
from studies.planning import TableJob, make_latencies, make_table
from studies.settings import Settings, open_context
from studies.workers import Clock
from tests.studies.conftest import tiny_settings
from trt_layermerge.pipeline.choosing import tools_of
from trt_layermerge.pipeline.closing import Closed, Finalist
from trt_layermerge.pipeline.context import Context


@pytest.fixture(scope="module")
def context(project: Path) -> Context:
    """The run of a tiny network whose blocks are measured and scored."""
    settings: Settings = tiny_settings(project, project / "choosing")
    (network,) = settings.networks
    make_latencies(settings, network, Clock())
    make_table(settings, TableJob(network.name, "full"), Clock())
    return open_context(settings, network, "full")


def arm(name: str) -> Arm:
    return next(a for a in ARMS if a.name == name)


def refuse(*_: object) -> None:
    raise AssertionError("a searched arm took a blind draw")


@pytest.mark.parametrize("name", ["ours", "layer", "depth", "ours-exp", "ours-capacity"])
@pytest.mark.parametrize("speedup", [1.1, 1.3])
def test_searched_arms_never_draw_blindly(
    context: Context, name: str, speedup: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "sample_plans", refuse)
    original_ms, networks = choosing.seen_networks(context)
    target_ms = original_ms / speedup
    found, how = choosing.chosen_plan(context, arm(name), original_ms, networks, target_ms)
    assert how in ("search", "near")
    assert found.measured is not None
    if how == "search":
        assert choosing.is_near(found.ms, target_ms)
    if name == "layer":
        assert all(c.kind == "identity" for c in found.plan.changed)


def test_of_plans_of_equal_latency_the_best_by_the_joint_loss_is_taken(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    original_ms, networks = choosing.seen_networks(context)
    tools = tools_of(context, original_ms, networks)
    table = tools.fit([])
    closed = Closed(table, tools.frontier(table))
    target_ms = original_ms / 1.3
    solved = choosing.solved_near(context, table, target_ms, 0)
    assert len(solved) > 1, "the test needs a choice"
    assert [p.score for p in solved] == sorted((p.score for p in solved), reverse=True)
    assert all(choosing.is_near(p.latency_ms or 0.0, target_ms) for p in solved)
    found = choosing.near_target(context, tools, closed, original_ms, target_ms)
    assert choosing.is_near(found.ms, target_ms)
    worst_first = choosing.worth_of
    monkeypatch.setattr(
        choosing, "worth_of", lambda c, plans: {k: -v for k, v in worst_first(c, plans).items()}
    )
    other = choosing.near_target(context, tools, closed, original_ms, target_ms)
    worth = worst_first(context, [found.plan, other.plan])
    assert worth[found.plan.candidates] > worth[other.plan.candidates]


def test_where_nothing_is_near_the_nearest_is_taken(context: Context) -> None:
    original_ms, networks = choosing.seen_networks(context)
    tools = tools_of(context, original_ms, networks)
    table = tools.fit([])
    closed = Closed(table, tools.frontier(table))
    fastest = tools.measure([choosing.plan_of(closed.frontier.solution(0), table.overhead_ms)])
    finalists = [Finalist(m.plan, m.ms, m) for m in fastest]
    closed = replace(closed, finalists=finalists)
    found = choosing.near_target(context, tools, closed, original_ms, original_ms / 1000)
    assert found.plan.candidates == finalists[0].plan.candidates
