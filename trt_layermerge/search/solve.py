"""Candidates and two tables → the frontier, and the plan for a budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from trt_layermerge.core.candidate import Candidate, original_candidate
from trt_layermerge.core.device import Precision
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.streams import KIND, alone_of
from trt_layermerge.core.tables import ImportanceEntry, ImportanceTable, LatencyTable
from trt_layermerge.errors import InfeasibleBudgetError
from trt_layermerge.kinds import kind_of
from trt_layermerge.search.chain import Frontier, Solution, chain_frontier
from trt_layermerge.search.states import Losses, chain_options

Mode: TypeAlias = Literal["layermerge", "depth", "layer"]


@dataclass(frozen=True, slots=True)
class Objective:
    """What is rewarded of a plan's candidates.

    Attributes:
        form: ``exp`` adds exp(delta), the published objective, which rewards every block that
            stays with about 1; ``delta`` adds the losses alone; ``worst`` adds nothing: the largest
            loss of a plan counts (ALDS, NeurIPS 2021).
        capacity: Reward for each convolution that keeps an activation behind it. Fits remove
            nonlinearity that fine-tuning cannot bring back, and the losses before fine-tuning do
            not show it.
    """

    form: Literal["delta", "exp", "worst"] = "delta"
    capacity: float = 0.0

    def value(self, candidate: Candidate, entry: ImportanceEntry) -> float:
        """Returns what one candidate adds, or how bad it is."""
        if self.form == "worst":
            return entry.delta
        gain = entry.score if self.form == "exp" else entry.delta
        return gain + self.capacity * candidate.nonlinear

    def of(self, values: Iterable[float]) -> float:
        """Returns what a plan is worth, by the values of its candidates."""
        return min(values, default=0.0) if self.form == "worst" else sum(values)


def allowed(candidate: Candidate, mode: Mode) -> bool:
    """Whether a candidate belongs to a mode.

    ``depth`` (Kim et al., ICML 2023) removes activations only; ``layer`` removes convolutions
    only; ``layermerge`` does both.
    """
    if mode == "depth":
        return len(candidate.kept) == len(candidate.block)
    if mode == "layer":
        return candidate.original or kind_of(candidate).family == "removal"
    return True


def frontier(
    graph: LayerGraph,
    candidates: Iterable[Candidate],
    latency: LatencyTable,
    importance: ImportanceTable,
    *,
    precision: Precision = "fp32",
    batch: int = 1,
    mode: Mode = "layermerge",
    objective: Objective | None = None,
) -> Frontier:
    """Returns every non-dominated (latency, score) of a network; payloads are candidates.

    Latencies are sums over the table, without its ``overhead_ms``. Candidates that were not scored
    are left out; leaving a unit as it is is always possible.

    Args:
        graph: The traced network.
        candidates: What may replace its blocks.
        latency: Latencies of all of them and of every untouched unit, in ms.
        importance: What each of them does to the network.
        precision: Precision of the latencies.
        batch: Images per run.
        mode: Which candidates count (``allowed``).
        objective: What is maximised; None for the sum of the losses alone.

    Raises:
        UsageError: If a candidate was never measured, or nothing that could be covers the chain.
    """
    objective = objective or Objective()
    originals = [original_candidate(graph, i) for i in range(len(graph.units))]
    usable = {c.key: c for c in originals}
    usable |= {c.key: c for c in candidates if allowed(c, mode) and c in importance}
    losses: Losses = {}
    if objective.form != "worst" and any(c.kind == KIND for c in usable.values()):
        losses = stream_losses(graph, importance)
    length, options = chain_options(
        graph,
        usable.values(),
        lambda c: latency.cost_ms(c, precision, batch),
        lambda c: objective.value(c, importance[c]),
        losses,
    )
    return chain_frontier(length, options, objective.form == "worst")


def stream_losses(graph: LayerGraph, importance: ImportanceTable) -> Losses:
    """Returns what the narrower streams that were scored lose by themselves, by name and width."""
    found: dict[str, dict[int, float]] = {}
    for stream in graph.streams:
        for (name, width), entry in alone_of(importance):
            if name == stream.name:
                found.setdefault(name, {})[width] = entry.delta
    return found


def fastest_ms(
    graph: LayerGraph,
    candidates: Iterable[Candidate],
    latency: LatencyTable,
    *,
    precision: Precision = "fp32",
    batch: int = 1,
    mode: Mode = "layermerge",
) -> float:
    """Returns the predicted latency of the fastest plan in ms, whatever it does to the network.

    Args:
        graph: The traced network.
        candidates: What may replace its blocks.
        latency: Latencies of all of them and of every untouched unit, in ms.
        precision: Precision of the latencies.
        batch: Images per run.
        mode: Which candidates count (``allowed``).

    Raises:
        UsageError: If a candidate was never measured, or nothing that could be covers the chain.
    """
    scored = [*candidates, *(original_candidate(graph, i) for i in range(len(graph.units)))]
    losses: dict[str, dict[int, float]] = {}
    for name, width in (pair for c in scored for pair in c.widths):
        losses.setdefault(name, {})[width] = 0.0
    length, options = chain_options(
        graph,
        [c for c in scored if allowed(c, mode)],
        lambda c: latency.cost_ms(c, precision, batch),
        lambda _: 0.0,
        losses,
    )
    return float(chain_frontier(length, options).latency_ms[0]) + latency.overhead_ms


def plan_of(solution: Solution, overhead_ms: float, budget_ms: float | None = None) -> MergePlan:
    """Returns the plan behind a solution; its latency includes the table's overhead.

    Args:
        solution: A point of a frontier, its payloads candidates.
        overhead_ms: What a whole network costs besides.
        budget_ms: The latency it was solved for, as the plan tells it; None for none.
    """
    return MergePlan(
        candidates=tuple(option.payload for option in solution.options),
        latency_ms=solution.latency_ms + overhead_ms,
        score=solution.score,
        budget_ms=budget_ms,
    )


def solve(
    graph: LayerGraph,
    candidates: Iterable[Candidate],
    latency: LatencyTable,
    importance: ImportanceTable,
    budget_ms: float,
    *,
    precision: Precision = "fp32",
    batch: int = 1,
    mode: Mode = "layermerge",
    objective: Objective | None = None,
) -> MergePlan:
    """Returns the plan of highest score whose predicted whole latency meets the budget.

    Args:
        graph: The traced network.
        candidates: What may replace its blocks; those that were not scored are left out.
        latency: Latencies of all of them and of every untouched unit, in ms.
        importance: What each of them does to the network.
        budget_ms: Largest predicted latency of the whole network, ``overhead_ms`` included.
        precision: Precision of the latencies.
        batch: Images per run.
        mode: ``layermerge``, ``depth`` (activations are removed only) or ``layer`` (convolutions
            are removed only).
        objective: What is maximised; None for the sum of the losses alone.

    Raises:
        InfeasibleBudgetError: If every plan is predicted to be slower.
        UsageError: If a candidate was never measured, or nothing that could be covers the chain.
    """
    found = frontier(
        graph,
        candidates,
        latency,
        importance,
        precision=precision,
        batch=batch,
        mode=mode,
        objective=objective,
    )
    return plan_within(found, latency, budget_ms, precision, batch)


def plan_within(
    found: Frontier, latency: LatencyTable, budget_ms: float, precision: Precision, batch: int
) -> MergePlan:
    """Returns the best plan of a frontier whose latency, overhead included, meets the budget.

    Args:
        found: The frontier under the table.
        latency: The table; tells the overhead.
        budget_ms: Largest latency of the whole network.
        precision: For the message.
        batch: For the message.

    Raises:
        InfeasibleBudgetError: If even the fastest plan is predicted to be slower.
    """
    fastest = float(found.latency_ms[0]) + latency.overhead_ms
    if fastest > budget_ms:
        raise InfeasibleBudgetError(
            f"budget {budget_ms:.4g} ms is below the fastest plan, {fastest:.4g} ms "
            f"({latency.device}, {precision}, batch {batch}); raise --budget-ms, lower --speedup, "
            "or allow more candidates (--rules full)"
        )
    solution = found.within(budget_ms - latency.overhead_ms)
    return plan_of(solution, latency.overhead_ms, budget_ms)
