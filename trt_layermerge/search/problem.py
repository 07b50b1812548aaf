"""What is searched: candidates, what each is worth, and what the sum over a plan rewards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.device import Precision
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceTable, LatencyTable
from trt_layermerge.search.chain import Frontier
from trt_layermerge.search.solve import Mode, Objective, frontier


def uses_paper_protocol(importance: ImportanceTable) -> bool:
    """Whether a table, whatever is asked for by now, was made by the paper's short trainings."""
    return importance.notes.get("method") == "finetune"


@dataclass(frozen=True)
class Problem:
    """A network's candidates and their worth, to be searched under any latency table.

    Attributes:
        graph: The traced network.
        candidates: What may stand in its blocks' places.
        importance: What each of them does to the network.
        precision: Precision of the latencies.
        batch: Batch of the latencies.
        mode: Which candidates count.
        objective: What the sum over a plan rewards.
    """

    graph: LayerGraph
    candidates: tuple[Candidate, ...]
    importance: ImportanceTable
    precision: Precision
    batch: int
    mode: Mode
    objective: Objective

    def frontier(
        self,
        table: LatencyTable,
        importance: ImportanceTable | None = None,
        candidates: Iterable[Candidate] | None = None,
    ) -> Frontier:
        """Returns the frontier under a latency table.

        Args:
            table: Latencies of everything that a candidate runs.
            importance: In place of the problem's own.
            candidates: In place of the problem's own.
        """
        return frontier(
            self.graph,
            self.candidates if candidates is None else candidates,
            table,
            self.importance if importance is None else importance,
            precision=self.precision,
            batch=self.batch,
            mode=self.mode,
            objective=self.objective,
        )

    def priced(self, table: LatencyTable, plan: MergePlan) -> MergePlan:
        """Returns a plan with its predicted latency and its score."""
        costs = (table.cost_ms(c, self.precision, self.batch) for c in plan.candidates)
        score = sum(self.objective.value(c, self.importance[c]) for c in plan.candidates)
        return replace(plan, latency_ms=table.overhead_ms + sum(costs), score=score)
