"""The first steps of a training, by which plans are told apart: who races, and what is judged."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.pipeline import tiny
from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.jsonio import read_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceTable
from trt_layermerge.data import LabelledData, batches
from trt_layermerge.finetune import loop
from trt_layermerge.finetune.evaluate import accuracy
from trt_layermerge.finetune.loop import EpochRow, FinetuneResult
from trt_layermerge.finetune.recipe import FinetuneRecipe
from trt_layermerge.pipeline.api import open_run, run_stage
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.pipeline.run import Run
from trt_layermerge.search.race import RUNGS, THROUGH, Raced
from trt_layermerge.search.race import race as race_by
from trt_layermerge.session.images import calibration_of
from trt_layermerge.session.searching import WholeNetworks
from trt_layermerge.session.starts import Starts
from trt_layermerge.session.training import LONG, SHARE

BATCH = 32
EXPLODING = {"epochs": 2, "batch": BATCH, "optimiser": "sgd", "lr": 1e30, "warmup_epochs": 0}


def opened(runs: Path, **overrides: object) -> Run:
    """Returns the tiny run with values of its recipe replaced."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return open_run(None, RunOptions("tiny", runs, overrides=dotted), NullReporter())


@pytest.fixture
def run(runs: Path) -> Run:
    return opened(runs)


def whole(run: Run, racing: Path = Path()) -> WholeNetworks:
    return run.session.whole_networks(run.train, run.data("val"), None, racing)


def race(run: Run, plans: list[MergePlan]) -> list[Raced]:
    with TemporaryDirectory() as racing:
        return race_by(plans, whole(run, Path(racing)), Callbacks())


def wanted(run: Run) -> bool:
    return whole(run).races


def calibration(run: Run) -> tuple[LabelledData, LabelledData]:
    section = run.recipe.importance
    return calibration_of(run.train, section.fit_images, section.score_images, run.seed)


def plans_of(run: Run) -> list[MergePlan]:
    """The chosen plan, the network as it is, and one without the first branch it can lose."""
    gone = next(
        c for c in run.session.candidates if c.kind == "identity" and c in run.session.importance
    )
    return [run.plan, MergePlan.of(run.graph, []), MergePlan.of(run.graph, [gone])]


def more_plans_of(run: Run) -> list[MergePlan]:
    """Those, and two that replace the first and the last block that composes."""
    merged = [c for c in run.session.candidates if c.kind == "compose" and len(c.block) == 2]
    return [
        *plans_of(run),
        *(MergePlan.of(run.graph, [c]) for c in merged[:: len(merged) - 1]),
    ]


def test_plans_race_where_they_are_trained_afterwards(run: Run) -> None:
    assert wanted(run)


@pytest.mark.parametrize(
    "changes",
    [
        {"search__race_steps": 0},
        {"finetune__preset": "none"},
        {"finetune__options__epochs": 0},
        {"finetune__start": "original", "finetune__anneal": 0.5},
    ],
)
def test_plans_do_not_race_where_the_recipe_does_not_say_so(
    runs: Path, changes: dict[str, object]
) -> None:
    assert not wanted(opened(runs, **changes))


def test_plans_do_not_race_under_the_papers_protocol(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = ImportanceTable(run.session.importance.entries, {"method": "finetune"})
    monkeypatch.setitem(run.session._made, "importance", table)
    assert not wanted(run)


def test_all_climb_a_rung_the_best_go_on_and_nothing_else_changes(run: Run) -> None:
    plans = more_plans_of(run)
    model = {name: value.clone() for name, value in run.session.model.state_dict().items()}
    images = [part.batch(torch.arange(len(part)))[0].clone() for part in calibration(run)]
    found = race(run, plans)
    assert len(found) == len(plans) == 5
    assert sorted(len(raced.scores) for raced in found) == [1, 1, *[RUNGS] * THROUGH]
    through = [raced.scores[0] for raced in found if len(raced.scores) == RUNGS]
    assert min(through) >= max(raced.scores[0] for raced in found if len(raced.scores) == 1)
    # Accuracy on the images of ``val``.
    assert all((s * tiny.IMAGES["val"]).is_integer() for raced in found for s in raced.scores)
    assert all(0.25 < s <= 1 for raced in found for s in raced.scores)
    with torch.random.fork_rng([]):
        torch.manual_seed(7)  # what others drew before must not matter, nor the order
        assert race(run, plans) == found
        again = race(run, plans[::-1])
    assert [raced.scores[0] for raced in again] == [raced.scores[0] for raced in found[::-1]]
    after = run.session.model.state_dict()
    assert [n for n in model if not torch.equal(model[n], after[n])] == []
    assert not any(module.training for module in run.session.model.modules())
    for part, before in zip(calibration(run), images, strict=True):
        assert torch.equal(part.batch(torch.arange(len(part)))[0], before)


def test_who_ran_further_is_ahead_and_who_diverged_is_behind() -> None:
    order = [
        Raced((0.1, 0.9, 0.8)),  # a mean of 0.6
        Raced((0.7, 0.5, 0.5)),
        Raced((0.6,)),
        Raced((0.5,)),
        Raced((0.9, -math.inf)),
        Raced((-math.inf,)),
    ]
    shuffled = [order[i] for i in (4, 2, 5, 0, 3, 1)]
    assert sorted(shuffled, key=lambda raced: raced.merit, reverse=True) == order
    assert order[0].score == pytest.approx(0.6)


class Enough(Exception):
    """Ends a training."""


def test_rungs_are_the_beginning_of_the_whole_training(runs: Path) -> None:
    """With so many epochs, a rung of the tiny project is one of them."""
    run = opened(runs, finetune__options__epochs=SHARE)
    (plan, *_), recipe, val = plans_of(run), whole(run).racers.teaching.recipe, run.data("val")
    assert recipe is not None and val is not None
    network, _ = whole(run).starts.start(plan)
    seen = []

    def judged(row: EpochRow) -> None:
        seen.append(accuracy(network, val))
        if row.epoch == RUNGS:
            raise Enough

    with pytest.raises(Enough):
        loop.finetune(network, run.train, None, recipe, teacher=run.session.model, on_epoch=judged)
    run.session.model.to(memory_format=torch.contiguous_format)
    first, _ = race(run, [plan, plan])
    assert list(first.scores) == seen and len(set(seen)) > 1


@pytest.mark.parametrize(
    ("steps", "epochs", "rung"),
    [
        (2, SHARE, 2),
        (5, SHARE, 5),
        (100, SHARE, 5),  # an epoch
        (100, 8, 2),  # a share of the training
        (100, 2, 1),
        (100, 1, 1),
    ],
)
def test_a_rung_is_so_many_steps_or_fewer_where_the_training_is_short(
    runs: Path, monkeypatch: pytest.MonkeyPatch, steps: int, epochs: int, rung: int
) -> None:
    asked = {"epochs": epochs, "lr": 0.002}
    run = opened(runs, search__race_steps=steps, finetune__options=asked)
    told: list[tuple[LabelledData, LabelledData | None, FinetuneRecipe, dict[str, Any]]] = []
    count, finetune, step = [], loop.finetune, loop._Training._step

    def counted(self: Any, number: int, *batch: Any) -> float:
        count.append(number)
        return step(self, number, *batch)

    def listened(
        student: nn.Module,
        train: LabelledData,
        val: LabelledData | None,
        recipe: FinetuneRecipe,
        **others: Any,
    ) -> FinetuneResult:
        told.append((train, val, recipe, others))
        return finetune(student, train, val, recipe, **others)

    monkeypatch.setattr(loop._Training, "_step", counted)
    monkeypatch.setattr(loop, "finetune", listened)
    plans = more_plans_of(run)
    race(run, plans)
    # All climb the first rung; the best go on where they were.
    further = list(range(rung, RUNGS * rung)) * THROUGH
    assert count == list(range(rung)) * len(plans) + further
    usual = whole(run).racers.teaching.recipe
    assert usual is not None
    for train, val, recipe, others in told:
        assert (len(train), val) == (rung * BATCH, None)
        assert others["teacher"] is run.session.model
        # The schedule is that of the whole training or a longer one: its rate is not lowered.
        assert recipe.epochs == max(usual.epochs, LONG * RUNGS)
        assert (recipe.lr, recipe.batch) == (usual.lr, BATCH)
    drawn = [torch.cat([x for x, _ in batches(train, 64)]) for train, *_ in told]
    assert all(torch.equal(images, drawn[0]) for images in drawn)


def test_who_cannot_be_continued_runs_anew_and_gains_no_rung(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans, calls = plans_of(run), []
    expected = race(run, plans)

    def elsewhere(*arguments: Any, state_path: Path, **others: Any) -> FinetuneResult:
        calls.append(state_path)
        path = state_path.with_name(f"{len(calls)}-{state_path.name}")
        return finetune(*arguments, state_path=path, **others)

    finetune = loop.finetune
    monkeypatch.setattr(loop, "finetune", elsewhere)
    assert race(run, plans) == expected
    assert len(calls) > len(plans)


def test_a_start_that_is_no_numbers_loses(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plans, start, calls = plans_of(run), Starts.start, []

    def spoilt(self: Starts, plan: MergePlan) -> Any:
        network, told = start(self, plan)
        calls.append(plan)
        if plan.candidates == plans[0].candidates:
            with torch.no_grad():
                next(network.parameters()).fill_(math.nan)
        return network, told

    monkeypatch.setattr(Starts, "start", spoilt)
    found = race(run, plans)
    assert [raced.score > -math.inf for raced in found] == [False, True, True]
    assert len(calls) == len(plans) + 2


@pytest.mark.parametrize("call", [0, 2, 3, 5])
def test_a_training_that_diverges_loses_and_the_others_go_on(
    runs: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Three climb the first rung and then go on, in the order of their scores."""
    run = opened(runs, finetune__options__epochs=SHARE)
    plans, finetune, calls = plans_of(run), loop.finetune, []
    usual = race(run, plans)

    def one_diverges(
        student: nn.Module, train: Any, val: Any, recipe: FinetuneRecipe, **others: Any
    ) -> FinetuneResult:
        calls.append(student)
        if len(calls) == 1 + call:
            recipe = FinetuneRecipe.from_json({**recipe.to_json(), **EXPLODING})
        return finetune(student, train, val, recipe, **others)

    monkeypatch.setattr(loop, "finetune", one_diverges)
    found = race(run, plans)
    (fallen,) = [place for place in range(3) if found[place] != usual[place]]
    begun = usual[fallen].scores[: call // 3]
    assert found[fallen].scores == (*begun, -math.inf)
    assert min(found, key=lambda raced: raced.merit) is found[fallen]
    if call < 3:
        assert (fallen, len(calls)) == (call, 5)  # it does not go on
    maps = [p for p in run.session.model.parameters() if p.ndim == 4]
    assert maps and all(p.is_contiguous() for p in maps)


@pytest.mark.parametrize("labelled", [True, False])
def test_weights_that_are_no_numbers_after_the_very_last_step_lose_too(
    runs: Path, labelled: bool
) -> None:
    """No loss tells of them, since none is worked out any more."""
    others = {} if labelled else {"data__val": None}
    run = opened(runs, search__race_steps=1, finetune__options=EXPLODING, **others)
    assert race(run, plans_of(run)[:1]) == [Raced((-math.inf,))]


def test_a_search_whose_racers_all_diverge_still_ends_with_a_plan(runs: Path) -> None:
    overrides = {"finetune.options": EXPLODING}
    plan, _ = tiny.run(runs, overrides=overrides, only_stage="search")
    assert plan["candidates"] and plan["measured_speedup"] > 1.3

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = (runs / "tiny" / "finalists.json").read_text()
    rows = json.loads(text, parse_constant=refuse)["finalists"]
    assert len(rows) > 1 and any(row["race_scores"] for row in rows)
    assert all(row["race_scores"] in (None, [None]) for row in rows)


def kl_by_hand(original: torch.Tensor, other: torch.Tensor) -> float:
    """Mean over images of Σ p · (log p − log q), in nats."""
    found = []
    for ours, theirs in zip(original.double().numpy(), other.double().numpy(), strict=True):
        p, q = (np.exp(row - row.max()) for row in (ours, theirs))
        p, q = p / p.sum(), q / q.sum()
        found.append(float((p * np.log(p / q)).sum()))
    return statistics.fmean(found)


@pytest.mark.parametrize("val", ["none", "unlabelled"])
def test_without_labelled_images_the_distance_from_the_original_is_the_judge(
    runs: Path, finished: Path, tmp_path: Path, val: str
) -> None:
    images = np.load(finished / "val.npz")["images"]
    np.savez(tmp_path / "plain.npz", images=images)
    source = None if val == "none" else f"npz:{tmp_path / 'plain.npz'}"
    run = opened(runs, data__val=source)
    judge = whole(run).racers.judge
    seen = calibration(run)[1] if source is None else run.data("val")
    assert seen is not None
    inputs = seen.batch(torch.arange(len(seen)))[0]
    other, _ = whole(run).starts.start(plans_of(run)[2])
    with torch.no_grad():
        expected = -kl_by_hand(run.session.model(inputs), other(inputs))
    assert judge(run.session.model) == 0
    # float32 logits of another batch size: rounded in their seventh digit
    assert judge(other) == pytest.approx(expected, rel=1e-4) and expected < -1e-3
    (raced,) = race(run, plans_of(run)[2:])
    assert math.isfinite(raced.score) and raced.score < 0


def test_a_search_is_done_again_where_plans_race_or_do_no_longer(runs: Path) -> None:
    """How they are trained is another matter: what was chosen may be trained in other ways too."""

    def searched(**overrides: object) -> tuple[bool, int]:
        """Returns whether it was done, and how many plans have raced."""
        told, values = tiny.Recorder(), {k.replace("__", "."): v for k, v in overrides.items()}
        run_stage("search", RunOptions("tiny", runs, overrides=values), told)
        rows = read_json(runs / "tiny" / "finalists.json", "finalists")["finalists"]
        raced = sum(row["race_scores"] is not None for row in rows)
        return told.stages("done") == ("search",), raced

    again, raced = searched(finetune__options__epochs=1)
    assert not again and raced > 1
    assert searched(finetune__preset="none") == (True, 0)
    assert searched(finetune__preset="short") == (True, raced)
    assert searched(search__race_steps=0) == (True, 0)
