"""What is searched: candidates, what each is worth, and what is rewarded of a plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.device import Precision
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceTable, LatencyTable
from trt_layermerge.search.chain import Frontier
from trt_layermerge.search.solve import Mode, Objective, frontier, stream_losses


def decides_alone(importance: ImportanceTable) -> bool:
    """Whether a published method made a table: then no whole network is scored or raced besides."""
    return importance.notes.get("method") in ("finetune", "spectral")


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
        objective: What is rewarded of a plan.
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
        values = [self.objective.value(c, self.importance[c]) for c in plan.candidates]
        losses = stream_losses(self.graph, self.importance)
        values += [losses[name][width] for name, width in plan.widths.items()]
        return replace(
            plan, latency_ms=table.overhead_ms + sum(costs), score=self.objective.of(values)
        )
