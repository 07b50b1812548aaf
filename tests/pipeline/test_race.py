"""The first steps of a training, by which plans are told apart: who races, and what is judged."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.pipeline import tiny
from trt_layermerge.core.jsonio import read_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceTable
from trt_layermerge.data import LabelledData, batches
from trt_layermerge.finetune import loop
from trt_layermerge.finetune.evaluate import accuracy
from trt_layermerge.finetune.loop import EpochRow, FinetuneResult
from trt_layermerge.finetune.recipe import FinetuneRecipe
from trt_layermerge.pipeline import starts
from trt_layermerge.pipeline.api import open_run, run_stage
from trt_layermerge.pipeline.context import Context
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.pipeline.race import LAPS, LONG, SHARE, THROUGH, Raced, judge_of, race, wanted
from trt_layermerge.pipeline.starts import start_network
from trt_layermerge.pipeline.training import training_recipe

BATCH = 32
EXPLODING = {"epochs": 2, "batch": BATCH, "optimiser": "sgd", "lr": 1e30, "warmup_epochs": 0}


def opened(runs: Path, **overrides: object) -> Context:
    """Returns the context of the tiny run with values of its recipe replaced."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return open_run(None, RunOptions("tiny", runs, overrides=dotted), NullReporter())


@pytest.fixture
def context(runs: Path) -> Context:
    return opened(runs)


def plans_of(context: Context) -> list[MergePlan]:
    """The chosen plan, the network as it is, and one without the first branch it can lose."""
    gone = next(c for c in context.candidates if c.kind == "identity" and c in context.importance)
    return [context.plan, MergePlan.of(context.graph, []), MergePlan.of(context.graph, [gone])]


def more_plans_of(context: Context) -> list[MergePlan]:
    """Those, and two that replace the first and the last block that composes."""
    merged = [c for c in context.candidates if c.kind == "compose" and len(c.block) == 2]
    return [
        *plans_of(context),
        *(MergePlan.of(context.graph, [c]) for c in merged[:: len(merged) - 1]),
    ]


def test_plans_race_where_they_are_trained_afterwards(context: Context) -> None:
    assert wanted(context)


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
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = ImportanceTable(context.importance.entries, {"method": "finetune"})
    monkeypatch.setitem(context.__dict__, "importance", table)
    assert not wanted(context)


def test_all_run_a_lap_the_best_go_on_and_nothing_else_changes(context: Context) -> None:
    plans = more_plans_of(context)
    model = {name: value.clone() for name, value in context.model.state_dict().items()}
    images = [part.batch(torch.arange(len(part)))[0].clone() for part in context.calibration]
    found = race(context, plans)
    assert len(found) == len(plans) == 5
    assert sorted(len(raced.scores) for raced in found) == [1, 1, *[LAPS] * THROUGH]
    through = [raced.scores[0] for raced in found if len(raced.scores) == LAPS]
    assert min(through) >= max(raced.scores[0] for raced in found if len(raced.scores) == 1)
    # Accuracy on the images of ``val``.
    assert all((s * tiny.IMAGES["val"]).is_integer() for raced in found for s in raced.scores)
    assert all(0.25 < s <= 1 for raced in found for s in raced.scores)
    with torch.random.fork_rng([]):
        torch.manual_seed(7)  # what others drew before must not matter, nor the order
        assert race(context, plans) == found
        again = race(context, plans[::-1])
    assert [raced.scores[0] for raced in again] == [raced.scores[0] for raced in found[::-1]]
    after = context.model.state_dict()
    assert [n for n in model if not torch.equal(model[n], after[n])] == []
    assert not any(module.training for module in context.model.modules())
    for part, before in zip(context.calibration, images, strict=True):
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


def test_laps_are_the_beginning_of_the_whole_training(runs: Path) -> None:
    """With so many epochs, a lap of the tiny project is one of them."""
    context = opened(runs, finetune__options__epochs=SHARE)
    (plan, *_), recipe, val = plans_of(context), training_recipe(context), context.data("val")
    assert recipe is not None and val is not None
    network, _ = start_network(context, plan)
    seen = []

    def judged(row: EpochRow) -> None:
        seen.append(accuracy(network, val))
        if row.epoch == LAPS:
            raise Enough

    with pytest.raises(Enough):
        loop.finetune(network, context.train, None, recipe, teacher=context.model, on_epoch=judged)
    context.model.to(memory_format=torch.contiguous_format)
    first, _ = race(context, [plan, plan])
    assert list(first.scores) == seen and len(set(seen)) > 1


@pytest.mark.parametrize(
    ("steps", "epochs", "lap"),
    [
        (2, SHARE, 2),
        (5, SHARE, 5),
        (100, SHARE, 5),  # an epoch
        (100, 8, 2),  # a share of the training
        (100, 2, 1),
        (100, 1, 1),
    ],
)
def test_a_lap_is_so_many_steps_or_fewer_where_the_training_is_short(
    runs: Path, monkeypatch: pytest.MonkeyPatch, steps: int, epochs: int, lap: int
) -> None:
    asked = {"epochs": epochs}
    context = opened(runs, search__race_steps=steps, finetune__options=asked)
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
    plans = more_plans_of(context)
    race(context, plans)
    # All run the first lap; the best go on where they were.
    further = list(range(lap, LAPS * lap)) * THROUGH
    assert count == list(range(lap)) * len(plans) + further
    usual = training_recipe(context)
    assert usual is not None
    for train, val, recipe, others in told:
        assert (len(train), val) == (lap * BATCH, None)
        assert others["teacher"] is context.model
        # The schedule is that of the whole training or a longer one: its rate is not lowered.
        assert recipe.epochs == max(usual.epochs, LONG * LAPS)
        assert (recipe.lr, recipe.batch) == (usual.lr, BATCH)
    drawn = [torch.cat([x for x, _ in batches(train, 64)]) for train, *_ in told]
    assert all(torch.equal(images, drawn[0]) for images in drawn)


def test_who_cannot_be_continued_runs_anew_and_gains_no_lap(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans, calls = plans_of(context), []
    expected = race(context, plans)

    def elsewhere(*arguments: Any, state_path: Path, **others: Any) -> FinetuneResult:
        calls.append(state_path)
        path = state_path.with_name(f"{len(calls)}-{state_path.name}")
        return finetune(*arguments, state_path=path, **others)

    finetune = loop.finetune
    monkeypatch.setattr(loop, "finetune", elsewhere)
    assert race(context, plans) == expected
    assert len(calls) > len(plans)


def test_a_start_that_is_no_numbers_loses(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans, start, calls = plans_of(context), starts.start_network, []

    def spoilt(context: Context, plan: MergePlan) -> Any:
        network, told = start(context, plan)
        calls.append(plan)
        if plan.candidates == plans[0].candidates:
            with torch.no_grad():
                next(network.parameters()).fill_(math.nan)
        return network, told

    monkeypatch.setattr(starts, "start_network", spoilt)
    found = race(context, plans)
    assert [raced.score > -math.inf for raced in found] == [False, True, True]
    assert len(calls) == len(plans) + 2


@pytest.mark.parametrize("call", [0, 2, 3, 5])
def test_a_training_that_diverges_loses_and_the_others_go_on(
    runs: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Three run the first lap and then go on, in the order of their scores."""
    context = opened(runs, finetune__options__epochs=SHARE)
    plans, finetune, calls = plans_of(context), loop.finetune, []
    usual = race(context, plans)

    def one_diverges(
        student: nn.Module, train: Any, val: Any, recipe: FinetuneRecipe, **others: Any
    ) -> FinetuneResult:
        calls.append(student)
        if len(calls) == 1 + call:
            recipe = FinetuneRecipe.from_json({**recipe.to_json(), **EXPLODING})
        return finetune(student, train, val, recipe, **others)

    monkeypatch.setattr(loop, "finetune", one_diverges)
    found = race(context, plans)
    (fallen,) = [place for place in range(3) if found[place] != usual[place]]
    begun = usual[fallen].scores[: call // 3]
    assert found[fallen].scores == (*begun, -math.inf)
    assert min(found, key=lambda raced: raced.merit) is found[fallen]
    if call < 3:
        assert (fallen, len(calls)) == (call, 5)  # it does not go on
    maps = [p for p in context.model.parameters() if p.ndim == 4]
    assert maps and all(p.is_contiguous() for p in maps)


@pytest.mark.parametrize("labelled", [True, False])
def test_weights_that_are_no_numbers_after_the_very_last_step_lose_too(
    runs: Path, labelled: bool
) -> None:
    """No loss tells of them, since none is worked out any more."""
    others = {} if labelled else {"data__val": None}
    context = opened(runs, search__race_steps=1, finetune__options=EXPLODING, **others)
    assert race(context, plans_of(context)[:1]) == [Raced((-math.inf,))]


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
    context = opened(runs, data__val=source)
    judge = judge_of(context)
    seen = context.calibration[1] if source is None else context.data("val")
    assert seen is not None
    inputs = seen.batch(torch.arange(len(seen)))[0]
    other, _ = start_network(context, plans_of(context)[2])
    with torch.no_grad():
        expected = -kl_by_hand(context.model(inputs), other(inputs))
    assert judge(context.model) == 0
    # float32 logits of another batch size: rounded in their seventh digit
    assert judge(other) == pytest.approx(expected, rel=1e-4) and expected < -1e-3
    (raced,) = race(context, plans_of(context)[2:])
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
