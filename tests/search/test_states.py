"""Widths as states: the frontier equals brute force over all widths and all covers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tests import nets
from tests.merge.test_slim import Stage
from trt_layermerge.core.conv import AddSpec, ConvSpec
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.streams import plan_at, width_alone, with_counterparts
from trt_layermerge.core.tables import (
    ImportanceEntry,
    ImportanceTable,
    LatencyEntry,
    LatencyTable,
)
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.search import Objective, frontier, plan_of
from trt_layermerge.search.problem import Problem
from trt_layermerge.search.sampling import sample_plans
from trt_layermerge.search.solve import fastest_ms, stream_losses
from trt_layermerge.tracing import trace

KINDS = ("compose", "identity", "stream")


def tables(graph: LayerGraph, seed: int) -> tuple[tuple, LatencyTable, ImportanceTable]:
    """Returns a few candidates with their counterparts, and random figures of all."""
    rng = np.random.default_rng(seed)
    offered = enumerate_candidates(graph, kinds=KINDS)
    whole = [c for c in offered if not c.widths and not c.original]
    used = {c.key for c in rng.permutation(np.array(whole, dtype=object))[:5]}
    places = {key[:4] for key in used}
    candidates = tuple(
        c for c in offered if c.original or c.kind == "stream" or c.key[:4] in places
    )
    scores = {key: ImportanceEntry(-float(rng.exponential()), "calibrate") for key in used}
    for stream in graph.streams:
        for width in {w for c in candidates for n, w in c.widths if n == stream.name}:
            alone = width_alone(graph, stream, width)
            loss = -float(rng.exponential()) * (1 - width / stream.channels)
            scores[alone.key] = ImportanceEntry(loss, "calibrate", channels=tuple(range(width)))
    specs = dict.fromkeys(s for c in candidates for s in c.costs)
    entries = {(s, "fp32", 1): LatencyEntry(float(rng.uniform(0.1, 2))) for s in specs}
    device = DeviceInfo("fake", "1", "none")
    importance = with_counterparts(graph, ImportanceTable(scores), candidates)
    return candidates, LatencyTable(device, entries, 0.5), importance


def consistent(graph: LayerGraph, candidates, widths: dict[str, int]):
    """Returns the candidates all of whose convolutions have these widths, told by their specs."""
    wanted = dict(zip(range(len(graph.units)), plan_at(graph, widths), strict=True))
    found = []
    for c in candidates:
        first, last = wanted[c.block.start], wanted[c.block.end - 1]
        ends = [s for s in c.convs]
        fits = not ends or (
            ends[0].in_channels == first.convs[0].in_channels
            and ends[-1].out_channels == last.convs[0].out_channels
        )
        paths = [s for s in c.extras if isinstance(s, ConvSpec)]
        fits &= all(s in last.extras for s in paths)
        if not ends:  # what hands on its input
            adds = [s.channels for s in c.extras if isinstance(s, AddSpec)]
            fits &= all(n == last.convs[0].out_channels for n in adds)
            fits &= bool(c.extras) or first.convs[0].in_channels == last.convs[0].out_channels
        if fits:
            found.append(c)
    return found


def covers(length: int, candidates, position: int = 0):
    """Yields every way to cover the chain."""
    if position == length:
        yield ()
        return
    for candidate in candidates:
        if candidate.block.start == position:
            for rest in covers(length, candidates, candidate.block.end):
                yield (candidate, *rest)


@pytest.mark.parametrize("seed", range(6))
def test_the_frontier_is_that_of_all_widths_and_covers(seed: int) -> None:
    graph = trace(nets.randomise(Stage()), nets.example())
    candidates, latency, importance = tables(graph, seed)
    losses = stream_losses(graph, importance)
    assert {len(found) for found in losses.values()} >= {1}
    points = []
    names = list(losses)
    for widths in product(*((0, *losses[n]) for n in names)):
        chosen = {n: w for n, w in zip(names, widths, strict=True) if w}
        known = [c for c in candidates if c in importance]
        own = sum(losses[n][w] for n, w in chosen.items())
        for cover in covers(len(graph.units), consistent(graph, known, chosen)):
            cost = sum(latency.cost_ms(c, "fp32", 1) for c in cover)
            points.append((cost, own + sum(importance[c].delta for c in cover)))
    best: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or score > best[-1][1]:
            best.append((cost, score))
    found = frontier(graph, candidates, latency, importance)
    assert np.allclose(np.array(list(found)), np.array(best), rtol=0, atol=1e-9)
    assert fastest_ms(graph, candidates, latency) <= best[0][0] + latency.overhead_ms + 1e-9
    problem = Problem(graph, candidates, importance, "fp32", 1, "layermerge", Objective())
    for index in range(len(found)):
        plan = plan_of(found.solution(index), latency.overhead_ms)
        assert problem.priced(latency, plan).latency_ms == pytest.approx(plan.latency_ms)
        assert problem.priced(latency, plan).score == pytest.approx(plan.score)


def test_sampled_plans_agree_on_their_widths() -> None:
    graph = trace(nets.randomise(Stage()), nets.example())
    candidates = enumerate_candidates(graph, kinds=(*KINDS, "fit"))
    plans = sample_plans(graph, candidates, 24, 0)
    assert sum(bool(plan.widths) for plan in plans) >= 12
    assert any(c.kind == "fit" and c.widths for plan in plans for c in plan.candidates)
    for plan in plans:
        assert isinstance(plan, MergePlan)
        for unit in plan_at(graph, plan.widths):
            whole = [c for c in plan.candidates if c.block == unit.block and c.kind in ("stream",)]
            assert all(c == unit for c in whole)
