"""The plans that the arms of a study come to: by their own rules, at the latency they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import studies.choosing as choosing
from studies.arms import ARMS, Arm
from studies.planning import TableJob, make_latencies, make_table
from studies.settings import Settings, open_context, with_values
from studies.workers import Clock
from tests.studies.conftest import tiny_settings
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.pipeline import race
from trt_layermerge.pipeline.choosing import tools_of
from trt_layermerge.pipeline.closing import Closed, Finalist, Tools
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.joint import FAMILIES, RACERS

CHOICE = 1.8
"""A speed-up that several plans of the tiny network measure at."""


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


def with_race(context: Context, steps: int) -> Context:
    """Returns the run with races of so many steps."""
    search = context.recipe.search.model_copy(update={"race_steps": steps})
    return with_values(context, search=search)


def begun(context: Context) -> tuple[float, Tools, Closed]:
    """Returns the original's latency, the tools, and a search that has measured no plan yet."""
    original_ms, networks = choosing.seen_networks(context)
    tools = tools_of(context, original_ms, networks)
    table = tools.fit([])
    return original_ms, tools, Closed(table, tools.frontier(table))


def refuse(*_: object) -> None:
    raise AssertionError("this arm must not do that")


UNRACED = ("layer", "depth", "ours-unraced", "ours-exp", "ours-capacity")


@pytest.mark.parametrize("name", ["ours", *UNRACED])
@pytest.mark.parametrize("speedup", [1.1, 1.3])
def test_searched_arms_never_draw_blindly_and_only_ours_races(
    context: Context, name: str, speedup: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert context.recipe.search.race_steps > 0
    monkeypatch.setattr(choosing, "sample_plans", refuse)
    if name in UNRACED:
        monkeypatch.setattr(race, "race", refuse)
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
    context = with_race(context, 0)
    original_ms, tools, closed = begun(context)
    target_ms = original_ms / CHOICE
    solved = choosing.solved_near(context, closed.table, target_ms, 0)
    assert len(solved) > 1, "the test needs a choice"
    assert [p.score for p in solved] == sorted((p.score for p in solved), reverse=True)
    assert all(choosing.is_near(p.latency_ms or 0.0, target_ms) for p in solved)
    found = choosing.near_target(context, tools, closed, original_ms, target_ms)
    assert choosing.is_near(found.ms, target_ms)
    worth_of = choosing.worth_of

    def worst_first(context: Context, plans: Sequence[MergePlan]) -> dict[object, object]:
        return {k: tuple(-part for part in v) for k, v in worth_of(context, plans).items()}

    monkeypatch.setattr(choosing, "worth_of", worst_first)
    other = choosing.near_target(context, tools, closed, original_ms, target_ms)
    worth = worth_of(context, [found.plan, other.plan])
    assert worth[found.plan.candidates] > worth[other.plan.candidates]


@pytest.mark.parametrize("winner", [0, -1])
def test_a_racing_arm_takes_the_near_plan_that_learns_most(
    context: Context, monkeypatch: pytest.MonkeyPatch, winner: int
) -> None:
    raced: list[Sequence[MergePlan]] = []

    def learn(context: Context, plans: Sequence[MergePlan]) -> list[race.Raced]:
        assert context.recipe.search.race_steps > 0
        raced.append(plans)
        return [race.Raced((float(plan is plans[winner]),)) for plan in plans]

    monkeypatch.setattr(race, "race", learn)
    original_ms, networks = choosing.seen_networks(context)
    target_ms = original_ms / CHOICE
    found, how = choosing.chosen_plan(context, arm("ours"), original_ms, networks, target_ms)
    (plans,) = raced  # once, among those that measure as wanted
    assert how == "near" and choosing.is_near(found.ms, target_ms)
    assert 1 < len(plans) <= RACERS * len(FAMILIES)
    assert len({plan.candidates for plan in plans}) == len(plans)
    assert found.plan.candidates == plans[winner].candidates
    again = tools_of(context, original_ms, networks).measure(list(plans))
    assert all(choosing.is_near(one.ms, target_ms) for one in again)


@pytest.mark.parametrize(("steps", "families"), [(100, FAMILIES), (0, FAMILIES[:1])])
def test_where_plans_race_every_family_is_looked_through(
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    families: tuple[tuple[str, ...], ...],
) -> None:
    asked: list[tuple[str, ...]] = []
    solved_near = choosing.solved_near

    def listen(
        context: Context, table: LatencyTable, ms: float, seed: int, kinds: tuple[str, ...]
    ) -> list[MergePlan]:
        asked.append(kinds)
        return solved_near(context, table, ms, seed, kinds)

    monkeypatch.setattr(choosing, "solved_near", listen)
    monkeypatch.setattr(race, "race", lambda _, plans: [race.Raced((0.0,))] * len(plans))
    context = with_race(context, steps)
    original_ms, tools, closed = begun(context)
    choosing.near_target(context, tools, closed, original_ms, original_ms / CHOICE)
    assert asked == [*families] * choosing.DRAWS


def test_where_nothing_is_near_the_nearest_is_taken(context: Context) -> None:
    original_ms, tools, closed = begun(context)
    overhead_ms = closed.table.overhead_ms
    fastest = tools.measure([choosing.plan_of(closed.frontier.solution(0), overhead_ms)])
    finalists = [Finalist(m.plan, m.ms, m) for m in fastest]
    closed = replace(closed, finalists=finalists)
    found = choosing.near_target(context, tools, closed, original_ms, original_ms / 1000)
    assert found.plan.candidates == finalists[0].plan.candidates
