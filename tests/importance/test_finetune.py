"""The paper's protocol: one short training per candidate, whatever the order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import nets
from tests.plans import composed, fitted
from trt_layermerge.core.candidate import original_candidate
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.data import split
from trt_layermerge.data.sources import ArrayData
from trt_layermerge.finetune.evaluate import accuracy
from trt_layermerge.finetune.loop import finetune
from trt_layermerge.finetune.recipe import FinetuneRecipe
from trt_layermerge.importance.finetune import FinetuneScorer, reinitialise
from trt_layermerge.merge.relax import relax
from trt_layermerge.tracing import trace

RECIPE = FinetuneRecipe(epochs=1, batch=8, optimiser="sgd", lr=0.05, distill_weight=0.0)


def coloured(count: int) -> ArrayData:
    """Returns images whose brightest channel is the label, of 5 classes with 2 unused."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    pixels = rng.integers(0, 100, (count, 3, 12, 13), dtype=np.uint8)
    pixels[np.arange(count), labels] += 120
    names = tuple("abcde")
    half = Preprocess(1 / 255, (0.3,) * 3, (0.25,) * 3)
    return ArrayData(torch.from_numpy(pixels), torch.from_numpy(labels), names, half)


@pytest.fixture
def scorer() -> FinetuneScorer:
    train, judge = split(coloured(120), 60, seed=0)
    model = nets.basic_resnet()
    finetune(model, train, None, FinetuneRecipe(epochs=4, batch=8, lr=0.01, distill_weight=0.0))
    graph = trace(model, nets.example())
    return FinetuneScorer(model, graph, train, judge, RECIPE)


def test_entry_is_the_change_of_accuracy_and_leaves_the_model_alone(
    scorer: FinetuneScorer,
) -> None:
    model, graph = scorer._model, scorer._graph
    before = {k: v.clone() for k, v in model.state_dict().items()}
    candidate = composed(graph, 1, 3, (2,))
    entry = scorer.entry(candidate)
    assert scorer.base == accuracy(model, scorer._judge) > 0.6
    assert entry.method == "finetune" and entry.repair is None
    assert -1 <= entry.delta <= 1
    hits = (scorer.base + entry.delta) * len(scorer._judge)
    assert hits == pytest.approx(round(hits), abs=1e-9)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_order_of_scoring_does_not_matter(scorer: FinetuneScorer) -> None:
    graph = scorer._graph
    candidates = [composed(graph, 1, 3, (1,)), fitted(graph, 3, 5, 3), original_candidate(graph, 2)]
    first = [scorer.entry(c) for c in candidates]
    torch.manual_seed(5)
    second = [scorer.entry(c) for c in reversed(candidates)]
    assert first == second[::-1]


def test_an_untouched_unit_is_initialised_anew(scorer: FinetuneScorer) -> None:
    model, graph = scorer._model, scorer._graph
    plan = MergePlan.of(graph, [])
    relaxed, again = relax(model, graph, plan), relax(model, graph, plan)
    before = {k: v.clone() for k, v in relaxed.state_dict().items()}
    state = torch.get_rng_state()
    reinitialise(relaxed, 2, seed=3)
    reinitialise(again, 2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    changed = {k for k, v in relaxed.state_dict().items() if not torch.equal(v, before[k])}
    unit = graph.units[2]
    assert f"net.{unit.name}.weight" in changed
    assert {k.rpartition(".")[0] for k in changed} == {f"net.{unit.name}", f"net.{unit.bn}"}
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in relaxed.state_dict().items())


def test_notes_tell_the_recipe_and_the_sizes(scorer: FinetuneScorer) -> None:
    assert scorer.notes == {
        "method": "finetune",
        "recipe": RECIPE.to_json(),
        "train_images": 60,
        "judge_images": 60,
    }


def test_a_diverging_training_counts_as_no_accuracy(scorer: FinetuneScorer) -> None:
    scorer._recipe = replace(RECIPE, lr=1e30)
    entry = scorer.entry(composed(scorer._graph, 1, 3, (2,)))
    assert entry.delta == -scorer.base
