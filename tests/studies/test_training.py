from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from studies.arms import ARMS, COURSES
from studies.glyphs import run_study
from studies.settings import Network, Settings
from studies.testing import trained
from studies.training import JOURNAL, Training, chosen_rate, due, study_context, train
from studies.workers import Clock
from tests.studies.conftest import tiny_settings
from trt_layermerge.core.jsonio import Json, read_lines
from trt_layermerge.finetune.evaluate import accuracy

OURS, EXP, RANDOM = (
    next(a for a in ARMS if a.name == name) for name in ("ours", "ours-exp", "random")
)
SETTINGS = Settings(
    Path("work"), (Network("net", Path("net.yaml"), 3),), (OURS,), seeds=(0, 1), rates=(0.1, 0.2)
)


def plan(arm: str, speedup: float, name: str, pick: int = 0) -> Json:
    return {"network": "net", "arm": arm, "speedup": speedup, "pick": pick, "plan": name}


def job(name: str, rate: float, seed: int) -> Training:
    return Training("net", name, "repair", rate, seed)


PLANS = [plan("ours", 1.5, "a"), plan("ours", 2.0, "b")]


def done_of(found: dict[tuple[str, float], float]) -> dict[Training, Json]:
    return {job(name, rate, 0): {"val": val} for (name, rate), val in found.items()}


def test_the_first_seed_tries_every_rate_at_every_speed_up() -> None:
    jobs, total = due(SETTINGS, PLANS, {})
    assert jobs == [job("a", 0.1, 0), job("b", 0.1, 0), job("a", 0.2, 0), job("b", 0.2, 0)]
    assert total == 6  # and two more with the other seed


def test_without_plans_nothing_is_due() -> None:
    assert due(SETTINGS, [], {}) == ([], 0)


def test_the_chosen_rate_trains_everything_else_and_is_not_trained_twice() -> None:
    found = {("a", 0.1): 0.7, ("b", 0.1): 0.9, ("a", 0.2): 0.8}
    assert chosen_rate(SETTINGS, "net", OURS, PLANS, done_of(found)) is None
    found["b", 0.2] = 0.7
    jobs, total = due(SETTINGS, PLANS, done_of(found))
    assert jobs == [job("a", 0.1, 1), job("b", 0.1, 1)]
    assert total == 6


def test_the_rate_is_the_best_in_the_mean_and_of_equals_the_lowest() -> None:
    found = {("a", 0.2): 0.7, ("b", 0.2): 0.9, ("a", 0.1): 0.8, ("b", 0.1): 0.8}
    assert chosen_rate(SETTINGS, "net", OURS, PLANS, done_of(found)) == 0.1
    found["a", 0.2] = 0.75
    assert chosen_rate(SETTINGS, "net", OURS, PLANS, done_of(found)) == 0.2


def test_arms_with_the_same_plan_and_start_share_trainings() -> None:
    both = replace(SETTINGS, arms=(OURS, EXP))
    plans = [*PLANS, plan("ours-exp", 1.5, "c"), plan("ours-exp", 2.0, "b")]
    jobs, _ = due(both, plans, {})
    assert {one.plan for one in jobs} == {"a", "b", "c"}
    assert len(jobs) == 6


def test_random_plans_differ_by_seed() -> None:
    random = replace(SETTINGS, arms=(RANDOM,), speedups=(2.0,))
    plans = [plan("random", 2.0, "r", 0), plan("random", 2.0, "s", 1)]
    done = done_of({("r", rate): rate for rate in (0.1, 0.2)})
    assert due(random, plans, done)[0] == [job("s", 0.2, 1)]


def test_arms_of_the_same_chooser_have_the_same_plans() -> None:
    choosers = {arm.name: arm.chooser for arm in ARMS}
    same = [{n for n in choosers if choosers[n] == choosers[m]} for m in ("ours", "ours-unraced")]
    trained = {name for name in COURSES if name not in ("repair", "post-training")}
    # Plans that are not trained have nothing to race with.
    assert same == [
        {"ours", *(f"ours-{name}" for name in trained)},
        {"ours-unraced", "ours-post-training"},
    ]


def test_post_training_has_no_learning_rate_to_choose() -> None:
    arm = next(a for a in ARMS if a.name == "ours-post-training")
    jobs, total = due(replace(SETTINGS, arms=(arm,)), [plan(arm.name, 2.0, "b")], {})
    assert [(job.course, job.rate, job.seed) for job in jobs] == [("post-training", 0.003, 0)]
    assert total == 2  # seeds


@pytest.fixture(scope="module")
def planned(project: Path) -> Settings:
    """A study whose plans are found."""
    settings = tiny_settings(project, project / "courses")
    run_study(settings, until="plan", tell=lambda _: None)
    return settings


def test_a_training_that_diverges_is_a_result(planned: Settings) -> None:
    _, rows = read_lines(planned.work / JOURNAL, "glyphs")
    name = next(r["plan"] for r in rows if r["kind"] == "plan" and r["arm"] == "ours")
    row = train(planned, Training("tiny", name, "repair", 1e30, 0), Clock())
    assert (row["diverged"], row["val"]) == (True, 0.0)


@pytest.mark.parametrize("course", COURSES)
def test_what_is_tested_is_what_was_trained(planned: Settings, course: str) -> None:
    _, rows = read_lines(planned.work / JOURNAL, "glyphs")
    name = next(r["plan"] for r in rows if r["kind"] == "plan" and r["arm"] == "ours")
    job = Training("tiny", name, course, 0.006, 1)
    row = train(planned, job, Clock())
    assert len(row["history"]) == (0 if course == "post-training" else 2)
    context = study_context(planned, job)
    val = context.data("val")
    assert val is not None
    found = accuracy(trained(planned, context, job), val)
    assert found == pytest.approx(row["val"], abs=1.5 / len(val))  # float32: a tie may fall over
