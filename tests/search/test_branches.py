"""What branches cost: as a whole, beside their units, and left out; and that the search sees it."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

from tests import nets
from trt_layermerge.core.candidate import Candidate, original_candidate
from trt_layermerge.core.conv import PieceSpec, Spec
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceEntry, ImportanceTable, LatencyEntry, LatencyTable
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.measure.fit import Observation, fit_latency
from trt_layermerge.search.sampling import inside_of, specs_of
from trt_layermerge.search.solve import frontier, solve
from trt_layermerge.tracing import trace

DEVICE = DeviceInfo("fake", "1", "desk")


class Gated(nn.Module):
    """Two residual branches of conv, gate and conv, the second within a longer one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(5))
        self.head = nn.Conv2d(4, 2, 1)

    def branch(self, x: Tensor, number: int) -> Tensor:
        y = self.convs[number](x)
        return self.convs[number + 1](y * y.mean((2, 3), keepdim=True)) + x

    def forward(self, x: Tensor) -> Tensor:
        x = self.branch(self.stem(x), 0)
        return self.head(self.convs[4](self.branch(x, 2)).relu() + x)


def graph() -> LayerGraph:
    return trace(nets.randomise(Gated()), nets.example(size=8))


def cost(spec: Spec) -> float:
    """Returns a latency that tells specs apart: a piece costs less than its layers one by one."""
    return 3.0 if isinstance(spec, PieceSpec) else 1.0 + spec.macs / 2**17  # type: ignore[union-attr]


def table(found: tuple[Candidate, ...], network: LayerGraph) -> LatencyTable:
    originals = [original_candidate(network, i) for i in range(len(network.units))]
    specs = {s for c in (*found, *originals) for s in (*c.costs, *c.inside)}
    return LatencyTable(DEVICE, {(s, "fp32", 1): LatencyEntry(cost(s)) for s in specs})


def test_a_branch_that_stays_costs_what_it_costs_as_a_whole() -> None:
    network = graph()
    branch = network.branches[0]
    units = range(branch.start, branch.end)
    latency = table((), network)
    total = sum(latency.cost_ms(original_candidate(network, i), "fp32", 1) for i in units)
    assert abs(total - 3.0) < 1e-12


def test_a_branch_around_a_branch_counts_it_once() -> None:
    network = graph()
    inner, outer = network.branches[1:]
    assert outer.start == inner.start and outer.end > inner.end
    latency = table((), network)
    units = range(outer.start, outer.end)
    total = sum(latency.cost_ms(original_candidate(network, i), "fp32", 1) for i in units)
    assert abs(total - 3.0) < 1e-12
    rest = original_candidate(network, outer.end - 1)
    between = network.units[inner.end].spec
    assert sorted(map(str, rest.inside)) == sorted(
        map(str, (between, network.units[inner.end - 1].spec))
    )


def test_the_frontier_is_that_of_every_plan() -> None:
    network = graph()
    found = enumerate_candidates(network)
    assert_frontier(network, [c for c in found if c.kind == "identity" and not c.original])


def assert_frontier(network: LayerGraph, wanted: list[Candidate]) -> None:
    """Checks the frontier of some candidates against every choice of them that is a plan."""
    latency = table(tuple(wanted), network)
    importance = ImportanceTable(
        {c.key: ImportanceEntry(-0.1 - 0.013 * i, "calibrate") for i, c in enumerate(wanted)}
    )
    best: dict[float, float] = {}
    for chosen in product(*([None, c] for c in wanted)):
        plan = [c for c in chosen if c is not None]
        covered = [i for c in plan for i in range(c.block.start, c.block.end)]
        if len(set(covered)) < len(covered):
            continue
        whole = MergePlan.of(network, plan).candidates
        ms = round(sum(latency.cost_ms(c, "fp32", 1) for c in whole), 9)
        score = sum(importance[c].delta for c in whole)
        best[ms] = max(best.get(ms, -9e9), score)
    expected, highest = [], -9e9
    for ms, score in sorted(best.items()):
        if score > highest + 1e-12:
            expected.append((ms, score))
            highest = score
    points = list(frontier(network, tuple(wanted), latency, importance))
    torch.testing.assert_close(torch.tensor(points), torch.tensor(expected), rtol=1e-9, atol=1e-9)


def test_the_search_leaves_a_branch_out() -> None:
    network = graph()
    found = enumerate_candidates(network)
    latency = table(found, network)
    branch = network.branches[0]
    cheap = next(c for c in found if network.branch_at(c.block) == branch and not c.convs)
    importance = ImportanceTable(
        {
            c.key: ImportanceEntry(-0.01 if c is cheap else -5.0, "calibrate")
            for c in found
            if not c.original
        }
    )
    untouched = MergePlan.of(network, [])
    whole = sum(latency.cost_ms(c, "fp32", 1) for c in untouched.candidates)
    plan = solve(network, found, latency, importance, whole - 2.9)
    assert plan.changed == (cheap,)


def test_a_table_is_fitted_to_networks_with_and_without_their_branches() -> None:
    """Whole networks cost 1.1 times what their parts cost alone; the fit finds that."""
    network = graph()
    found = enumerate_candidates(network)
    bare = table(found, network)
    removals = [c for c in found if network.branch_at(c.block) and not c.convs and not c.original]
    plans = [MergePlan.of(network, [])] + [MergePlan.of(network, [c]) for c in removals] * 3
    seen = []
    for plan in plans:
        ms = sum(bare.cost_ms(c, "fp32", 1) for c in plan.candidates)
        seen.append(Observation(specs_of(plan), 1.1 * ms, inside_of(plan)))
    fitted = fit_latency(bare, seen, "fp32", 1)
    for plan, observation in zip(plans, seen, strict=True):
        predicted = fitted.overhead_ms + sum(fitted.cost_ms(c, "fp32", 1) for c in plan.candidates)
        assert abs(predicted / observation.ms - 1) < 0.02


def test_what_counts_twice_is_counted_once() -> None:
    network = graph()
    untouched = MergePlan.of(network, [])
    counts = Observation(specs_of(untouched), 1.0, inside_of(untouched)).counts
    pieces = {network.units[b.end - 1].spec for b in (network.branches[0], network.branches[2])}
    outside = [network.units[0].spec, network.units[-1].spec]
    assert {spec: n for spec, n in counts.items() if n} == dict.fromkeys([*pieces, *outside], 1)
