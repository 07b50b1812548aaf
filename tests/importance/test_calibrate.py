"""Scores by calibration equal what the relaxed network itself answers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from tests import nets
from tests.importance.scored import estimate
from tests.merge.repairing import repair_block
from tests.plans import candidates_of
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.inputs import Several
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceEntry
from trt_layermerge.errors import UsageError
from trt_layermerge.importance.amounts import Amounts
from trt_layermerge.importance.calibrate import WORST, CalibrateScorer, place_of_enough
from trt_layermerge.importance.distance import Distance
from trt_layermerge.importance.table import candidate_seed
from trt_layermerge.kinds import kind_of
from trt_layermerge.merge.relax import relax
from trt_layermerge.merge.surgery import block_ports
from trt_layermerge.tracing import trace, trace_network

FACTORIES = [nets.basic_resnet, nets.mobile, nets.repvgg_like, nets.odd_chain, nets.branching]


def images(count: int, seed: int) -> Tensor:
    return nets.example(batch=count, seed=seed).double()


def setting(factory: Callable[..., nn.Module]) -> tuple[nn.Module, LayerGraph, list[Candidate]]:
    model = factory().double()
    graph = trace(model, images(1, 0))
    found = [
        c
        for c in candidates_of(graph, random.Random(0), kernels=(1, 3))
        if len(c.block) > 1 or c.kind != "compose"
    ]
    return model, graph, random.Random(1).sample(found, min(14, len(found)))


def scorer(model: nn.Module, graph: LayerGraph, **options: object) -> CalibrateScorer:
    given: dict[str, Any] = {"fit": images(24, 1), "score": images(10, 2), **options}
    return CalibrateScorer(model, graph, given.pop("fit"), given.pop("score"), batch=4, **given)


def values_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Returns every value of the traced network by name."""
    found = {}

    class Keeping(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            found[n.name] = super().run_node(n)
            return found[n.name]

    with torch.no_grad():
        Keeping(trace_network(model, x[:1]).module).run(x)
    return found


def kl(p: Tensor, q: Tensor) -> float:
    p, q = p.log_softmax(1), q.log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: f.__name__)
def test_scores_equal_those_of_the_relaxed_network(factory: Callable[..., nn.Module]) -> None:
    """Every candidate, unrepaired: downstream recomputation against the whole network, float64."""
    model, graph, candidates = setting(factory)
    with torch.no_grad():
        original = model(images(10, 2))
    unrepaired = scorer(model, graph, repairs=("none",))
    moved = 0
    for candidate in candidates:
        if candidate.kind == "fit":
            continue
        relaxed = relax(model, graph, MergePlan.of(graph, [candidate]))
        with torch.no_grad():
            expected = kl(original, relaxed(images(10, 2)))
        entry = unrepaired.entry(candidate)
        assert entry.repair == "none"
        assert -entry.delta == pytest.approx(expected, rel=1e-9, abs=1e-12), str(candidate)
        moved += expected > 1e-6
    assert moved >= 3


@pytest.mark.parametrize("factory", FACTORIES[:3], ids=lambda f: f.__name__)
def test_the_best_repair_counts(factory: Callable[..., nn.Module]) -> None:
    """Each repair on its own, done by hand on the relaxed network, against the entry."""
    model, graph, candidates = setting(factory)
    everything, values = scorer(model, graph), values_of(model, images(24, 1))
    with torch.no_grad():
        original = model(images(10, 2))
    for candidate in candidates[:6]:
        distances = {}
        (block,) = relax(model, graph, MergePlan.of(graph, [candidate])).blocks.values()
        for method in kind_of(candidate).repairs(block):
            relaxed = relax(model, graph, MergePlan.of(graph, [candidate]))
            (block,) = relaxed.blocks.values()
            if method != "none":
                ports = block_ports(trace_network(model, images(1, 0)), candidate)
                inputs, targets = values[ports.source], values[ports.target]
                repair_block(block, inputs, targets, method, candidate_seed(candidate, 0))
            with torch.no_grad():
                distances[method] = kl(original, relaxed(images(10, 2)))
        entry = everything.entry(candidate)
        assert -entry.delta == pytest.approx(min(distances.values()), rel=1e-7, abs=1e-12)
        assert entry.repair is not None and distances[entry.repair] == min(distances.values())
    assert everything.notes["distance"] == "KL"


def test_the_best_of_the_first_images_is_scored_on_all() -> None:
    model, graph, candidates = setting(nets.basic_resnet)
    screened = scorer(model, graph, amounts=Amounts(10, screen=4))
    assert len(screened._score.parts) == 3
    for candidate in candidates[:6]:
        entry = screened.entry(candidate)
        alone = scorer(model, graph, repairs=(entry.repair,)).entry(candidate)
        assert entry.delta == pytest.approx(alone.delta, rel=1e-9)


def test_a_first_look_is_one_repair_scored_on_the_first_images() -> None:
    model, graph, candidates = setting(nets.basic_resnet)
    quick = scorer(model, graph, amounts=Amounts(10, screen=8, first=4))
    first = scorer(model, graph, repairs=("ls-variance",), score=images(10, 2)[:4])
    looked = {c: quick.entry(c, first=True) for c in candidates if c.kind == "fit"}
    assert len(looked) > 3
    for candidate, entry in looked.items():
        assert (entry.repair, entry.images) == ("ls-variance", 4)
        assert entry.delta == pytest.approx(first.entry(candidate).delta, rel=1e-9)
        # What it is scored by afterwards does not depend on it.
        whole = scorer(model, graph, amounts=Amounts(10, screen=8))
        assert quick.entry(candidate) == whole.entry(candidate)


def test_few_images_are_fitted_to_where_their_positions_suffice() -> None:
    model, graph, candidates = setting(nets.basic_resnet)
    sparing = scorer(model, graph, amounts=Amounts(10, few=1))
    counts = (1, 4, 16, 24)
    assert sparing._amounts.to_fit(24) == [*counts]
    alone = {n: scorer(model, graph, fit=images(24, 1)[:n]) for n in counts}
    used = set()
    for candidate in candidates:
        if candidate.kind == "fit":
            last = candidate.convs[-1]
            unknowns = last.in_channels // last.groups * math.prod(last.kernel) + 1
            positions = min(256, math.prod(last.out_size))
            enough = next((n for n in counts if n * positions >= 5 * unknowns), counts[-1])
            used.add(enough)
            assert sparing.entry(candidate) == alone[enough].entry(candidate)
    assert used == {1, 4}
    assert [place_of_enough(counts, 9, unknowns) for unknowns in (1, 27, 1000)] == [1, 2, 3]


def test_joined_batches_score_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph, candidates = setting(nets.basic_resnet)
    deltas, runs = [], []
    for most in (4, 8, 64):  # 10 images in batches of 4: each alone, by twos, all at once
        monkeypatch.setattr("trt_layermerge.importance.values.MOST_IMAGES", most)
        joining = scorer(model, graph, repairs=("none",), amounts=Amounts(10, screen=8))
        found = joining._score.joined_batches
        lengths: list[int] = []

        def noting(names: list[str], *counts: int, f=found, n=lengths) -> Iterator[Any]:
            for values in f(names, *counts):
                n.append(len(values[names[0]]))
                yield values

        monkeypatch.setattr(joining._score, "joined_batches", noting)
        deltas.append([joining.entry(c).delta for c in candidates if c.kind != "fit"])
        runs.append(lengths[: {4: 5, 8: 3, 64: 2}[most]])
    assert runs == [[4, 4, 4, 4, 2], [8, 8, 2], [8, 10]]
    assert deltas[1] == pytest.approx(deltas[0], rel=1e-9, abs=1e-12)
    assert deltas[2] == pytest.approx(deltas[0], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("values", [1000, 4])
def test_the_order_of_scoring_does_not_matter(values: int) -> None:
    """Bit for bit, whatever is kept: so many of the largest values fit."""
    model, graph, candidates = setting(nets.basic_resnet)
    largest = max(scorer(model, graph)._fits[0].bytes_an_image.values())
    limit = values * largest * 24
    forward = {c.key: scorer(model, graph, limit_bytes=limit).entry(c) for c in candidates}
    shared = scorer(model, graph, limit_bytes=limit)
    backward = {c.key: shared.entry(c) for c in reversed(candidates)}
    assert forward == backward
    assert shared._fits[0].fits(shared._fits[0].bytes_an_image) == (values == 1000)


def test_an_interrupted_table_equals_a_whole_one(tmp_path: Path) -> None:
    model, graph, candidates = setting(nets.plain_chain)
    inner = scorer(model, graph)
    left = 3

    class Stopping:
        def entry(self, candidate: Candidate, first: bool = False) -> ImportanceEntry:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return inner.entry(candidate)

    with pytest.raises(KeyboardInterrupt):
        estimate(candidates, Stopping(), tmp_path / "a", inner.notes)
    resumed = estimate(candidates, scorer(model, graph), tmp_path / "a", inner.notes)
    whole = estimate(candidates, inner, tmp_path / "b", inner.notes)
    assert resumed.entries == whole.entries
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_without_memory_for_values_they_are_recomputed() -> None:
    model, graph, candidates = setting(nets.basic_resnet)
    kept, recomputed = scorer(model, graph), scorer(model, graph, limit_bytes=0)
    assert all(s._score.fits(s._score.bytes_an_image) == (s is kept) for s in (kept, recomputed))
    for candidate in [c for c in candidates if c.kind == "identity"]:
        assert kept.entry(candidate) == recomputed.entry(candidate)
    # A fit then sees the first batch of images only, so its score may differ, but it has one.
    assert recomputed.entry(next(c for c in candidates if c.kind == "fit")).delta < 0


def test_other_outputs_are_compared_by_their_relative_error() -> None:
    model = nets.plain_chain().double()
    model = nn.Sequential(*list(model.children())[:-1])  # without the head: a map comes out
    graph = trace(model, images(1, 0))
    candidate = next(candidates_of(graph, random.Random(0), ("compose",)))
    found = scorer(model, graph, repairs=("none",), kinds=("values",))
    with torch.no_grad():
        y = model(images(10, 2))
        z = relax(model, graph, MergePlan.of(graph, [candidate]))(images(10, 2))
    expected = float((z - y).square().sum() / y.square().sum())
    assert found.notes["distance"] == "relative MSE"
    assert -found.entry(candidate).delta == pytest.approx(expected, rel=1e-9)


def test_the_model_is_left_untouched() -> None:
    model, graph, candidates = setting(nets.basic_resnet)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    scorer(model.train(), graph).entry(candidates[0])
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_graph_of_another_network_is_refused() -> None:
    graph = trace(nets.plain_chain().double(), images(1, 0))
    with pytest.raises(UsageError, match="trace the model again"):
        scorer(nets.basic_resnet().double(), graph)


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x))) + y


def test_two_inputs_are_scored_like_one() -> None:
    """A candidate's score is the distance of the whole network with it in place."""
    model, both = Sum().double(), (images(1, 0), images(1, 1))
    graph = trace(model, both)
    candidate = next(candidates_of(graph, random.Random(0), ("compose",)))
    fit, score = (Several((images(8, s), images(8, s + 1))) for s in (3, 5))
    found = CalibrateScorer(model, graph, fit, score, repairs=("none",), kinds=("values",))
    with torch.no_grad():
        y = model(*score.parts)
        z = relax(model, graph, MergePlan.of(graph, [candidate]))(*score.parts)
    expected = float((z - y).square().sum() / y.square().sum())
    assert -found.entry(candidate).delta == pytest.approx(expected, rel=1e-9)
    assert expected > 0


def test_divergence_by_hand() -> None:
    p, q = torch.tensor([[2.0, 2.0]]).log(), torch.tensor([[1.0, 3.0]]).log()
    distance = Distance.to([p, p])
    # KL of (1/2, 1/2) to (1/4, 3/4) is ½ log 2 + ½ log ⅔; the other image is equal.
    expected = (0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()) / 2
    assert distance.name == "KL"
    assert distance.of(iter([q, p])) == pytest.approx(float(expected), rel=1e-6)
    assert distance.of(iter([q, p * torch.nan])) == float("inf")
    single = Distance.to([torch.tensor([[3.0], [4.0]])])
    assert single.name == "relative MSE"
    assert single.of(iter([torch.tensor([[3.0], [5.0]])])) == pytest.approx(1 / 25)


def test_distances_of_every_kind_by_hand() -> None:
    """Pixels are images; each quantity of a regression counts alike; yes and no have a KL too."""
    maps, other = (
        torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(s)) for s in (1, 2)
    )
    p, q = (v.double().permute(0, 2, 3, 1).reshape(8, 3).log_softmax(1) for v in (maps, other))
    kl = float((p.exp() * (p - q)).sum(1).mean())
    assert Distance.to([maps], ["classes"]).of(iter([other])) == pytest.approx(kl)
    # The same by its shape, where the image is as large, and only there.
    assert Distance.to([maps], None, (2, 1, 2, 2)).kinds == ("classes",)
    assert Distance.to([maps], None, (2, 3, 2, 2)).kinds == ("values",)
    sizes, wrong = torch.tensor([[0.1, 300.0], [0.1, 300.0]]), torch.tensor([[0.0, 300.0]] * 2)
    assert Distance.to([sizes], ["values"]).of(iter([wrong])) == pytest.approx(0.5)
    yes, no = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 2.0]])
    half = torch.tensor(1.0, dtype=torch.float64).sigmoid()
    expected = 0.5 * (0.5 * (0.5 / half).log() + 0.5 * (0.5 / (1 - half)).log())
    assert Distance.to([yes], ["labels"]).of(iter([no])) == pytest.approx(float(expected))
    chances = Distance.to([yes.sigmoid()], ["probabilities"])
    assert chances.of(iter([no.sigmoid()])) == pytest.approx(float(expected), rel=1e-5)
    nothing, little = torch.full((2, 1, 4, 4), 1e-7), torch.full((2, 1, 4, 4), 1e-5)
    assert Distance.to([nothing], ["values"]).of(iter([little])) > 9000
    assert 0 < Distance.to([nothing], ["probabilities"]).of(iter([little])) < 2e-5
    pair = Distance.to([(maps, sizes, sizes.long())], ["classes", "values", "indices"])
    assert pair.name == "KL and relative MSE"
    assert pair.of(iter([(other, wrong, sizes.long() + 1)])) == pytest.approx((kl + 0.5) / 2)


def test_answers_that_are_not_finite_are_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph, candidates = setting(nets.plain_chain)
    monkeypatch.setattr(Distance, "of", lambda self, outputs: math.inf)
    assert scorer(model, graph).entry(candidates[0]) == ImportanceEntry(WORST, "calibrate", None)
