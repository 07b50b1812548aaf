"""The closed loop: solve, build the finalists whole, measure them, correct the table, solve again.

A table of blocks can only predict a network. The plan that is handed on was built and measured,
and it met the budget then. Where the device is out of reach the loop is closed by hand: ``predict``
knows measurements that were imported, and names the plans that should be measured next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.errors import DeviceError, InfeasibleBudgetError
from trt_layermerge.search.chain import Frontier
from trt_layermerge.search.evaluator import Measured
from trt_layermerge.search.solve import plan_of

REACH = 1.08
"""Plans predicted up to this much slower than the budget are built too: the table may be wrong."""

LOWER = 0.95
"""By this much at least is aimed lower where the table keeps promising too much."""

Key = tuple[Candidate, ...]


@dataclass(frozen=True)
class Tools:
    """What the loop needs done, as functions, so that it can be tested without a clock.

    Attributes:
        fit: Observed networks → a latency table corrected by them.
        frontier: Latency table → the frontier under it.
        measure: Plans → their whole networks, measured.
        price: A latency table and a plan → the plan with its predicted latency and its score.
        wider: How more candidates can be allowed, in words behind other advice; "" where all are.
    """

    fit: Callable[[Sequence[Measured]], LatencyTable]
    frontier: Callable[[LatencyTable], Frontier]
    measure: Callable[[Sequence[MergePlan]], Sequence[Measured]]
    price: Callable[[LatencyTable, MergePlan], MergePlan]
    wider: str = ""


@dataclass(frozen=True, slots=True)
class Finalist:
    """A plan with its prediction at the time it was chosen, and what was measured, if it was."""

    plan: MergePlan
    predicted_ms: float
    measured: Measured | None

    @property
    def ms(self) -> float:
        """Measured latency; infinite where there is none."""
        return self.measured.ms if self.measured else math.inf


@dataclass
class Closed:
    """What the loop found.

    Attributes:
        finalists: Every plan that was to be built and measured, in that order.
        table: The latency table, corrected by all of them.
        frontier: The frontier under that table.
    """

    table: LatencyTable
    frontier: Frontier
    finalists: list[Finalist] = field(default_factory=list)

    def meeting(self, limit_ms: float) -> list[Finalist]:
        """Returns the finalists that measured within the limit, the best score first."""
        good = [f for f in self.finalists if f.ms <= limit_ms]
        return sorted(good, key=lambda f: -(f.plan.score or 0.0))

    @property
    def fastest_ms(self) -> float:
        """Predicted latency of the fastest plan."""
        return float(self.frontier.latency_ms[0]) + self.table.overhead_ms

    @property
    def measured(self) -> list[Measured]:
        """What was measured."""
        return [f.measured for f in self.finalists if f.measured is not None]


class BudgetMissedError(InfeasibleBudgetError):
    """No plan meets the budget. ``closed`` is what the loop found until then."""

    def __init__(self, message: str, closed: Closed) -> None:
        super().__init__(message)
        self.closed = closed


def close_loop(
    limit_ms: float, width: int, loops: int, tools: Tools, budget_ms: float | None = None
) -> Closed:
    """Returns measured finalists for a limit; at most ``width`` new ones in each of ``loops``.

    Stops when the plan that the corrected table likes best was already measured within the limit.
    Where nothing met the limit until then, the table still promises too much, and ever faster plans
    are tried; a limit counts as missed only when the fastest plans were measured.

    Args:
        limit_ms: The latency to aim for.
        width: Plans measured at a time.
        loops: How often, unless the limit is not met by then.
        tools: How to fit, search and measure.
        budget_ms: The latency that must be met, where that is more than the one to aim for.

    Raises:
        BudgetMissedError: If no plan measures within the budget; says by how much it is missed.
        DeviceError: If no plan could be built and run.
    """
    budget_ms = budget_ms or limit_ms
    table = tools.fit([])
    closed = Closed(table, tools.frontier(table))
    known: dict[Key, Finalist] = {}
    aim_ms, rounds = limit_ms, 0
    while True:
        wanted = around(closed.frontier, closed.table.overhead_ms, aim_ms, width)
        new = [plan for plan in wanted if plan.candidates not in known]
        if new:
            for plan, measured in zip(new, tools.measure(new), strict=True):
                known[plan.candidates] = Finalist(plan, plan.latency_ms or 0.0, measured)
            closed.finalists = list(known.values())
            closed.table = tools.fit(closed.measured)
            closed.frontier = tools.frontier(closed.table)
            rounds += 1
        if _settled(closed, limit_ms):
            return closed
        if new and rounds < loops:
            continue
        if closed.meeting(limit_ms):
            return closed
        if aim_ms < closed.fastest_ms:
            if closed.meeting(budget_ms):
                return closed
            raise missed(closed, budget_ms, tools.wider)
        fastest_ms = min(f.ms for f in closed.finalists)
        aim_ms *= min(LOWER, limit_ms / fastest_ms) if math.isfinite(fastest_ms) else LOWER


def predict(
    aims_ms: Sequence[float], width: int, tools: Tools, known: Sequence[Measured]
) -> Closed:
    """Returns the plans that were measured before, and those that should be measured next.

    Nothing is measured: ``tools.measure`` is not called. The finalists are the known networks, then
    at most ``width`` plans around each aim that are not known, their measurement None. Where none
    of these is predicted within the limit and none of the known ones met it, the aims go lower.

    Args:
        aims_ms: The latency to aim for, which is the limit, then lower ones.
        width: How many plans to choose around each.
        tools: How to fit, search and price.
        known: Networks that were measured.
    """
    table, limit_ms = tools.fit(known), aims_ms[0]
    found, measured = tools.frontier(table), {m.plan.candidates for m in known}
    finalists = []
    for one in known:
        plan = tools.price(table, one.plan)
        finalists.append(Finalist(plan, plan.latency_ms or 0.0, one))
    closed = Closed(table, found, finalists)
    while True:
        wanted = [p for aim in aims_ms for p in around(found, table.overhead_ms, aim, width)]
        new = {p.candidates: p for p in wanted if p.candidates not in measured}
        hopeful = any((plan.latency_ms or 0.0) <= limit_ms for plan in new.values())
        if hopeful or closed.meeting(limit_ms) or max(aims_ms) < closed.fastest_ms:
            finalists += [Finalist(plan, plan.latency_ms or 0.0, None) for plan in new.values()]
            return closed
        aims_ms = [LOWER * aim for aim in aims_ms]


def around(found: Frontier, overhead_ms: float, limit_ms: float, width: int) -> list[MergePlan]:
    """Returns the plans on the frontier nearest to a limit, most of them predicted within it.

    Where none is predicted within it, the fastest ones are returned.

    Args:
        found: The frontier.
        overhead_ms: What a whole network costs beside its latency there.
        limit_ms: Latency of the whole network to be near to.
        width: How many plans at most.
    """
    latencies = found.latency_ms + overhead_ms
    within = int((latencies <= limit_ms).sum())
    beyond = int((latencies <= limit_ms * REACH).sum()) - within
    above = min(beyond, max(1, width // 3), width - 1)
    first = max(0, within - (width - above))
    return [
        plan_of(found.solution(index), overhead_ms, limit_ms)
        for index in range(first, max(within + above, min(width, len(found))))
    ]


def _settled(closed: Closed, limit_ms: float) -> bool:
    """Whether nothing better is left to build: the best prediction was measured and holds."""
    meeting = closed.meeting(limit_ms)
    if not meeting:
        return False
    affordable = closed.frontier.latency_ms + closed.table.overhead_ms <= limit_ms
    best = float(closed.frontier.score[affordable].max(initial=float("-inf")))
    return (meeting[0].plan.score or 0.0) >= best


def missed(closed: Closed, budget_ms: float, wider: str = "") -> BudgetMissedError | DeviceError:
    """Returns the error of a budget that no plan meets, and by how much the fastest misses it."""
    measured, where = closed.measured, closed.table.device
    if measured and all(m.error is not None for m in measured):
        return DeviceError(
            f"none of the {len(measured)} networks could be built and run on {where}; the first "
            f"said: {measured[0].error}"
        )
    if measured:
        fastest = min(measured, key=lambda m: m.ms)
        factor = fastest.ms / budget_ms
        excess = (
            f"{100 * (factor - 1):.1f} % too slow" if factor < 1e4 else f"{factor:.1e} times it"
        )
        fact = (
            f"the fastest of {len(measured)} that were built and measured takes {fastest.ms:.4g} "
            f"ms ({fastest.ratio:.2f}x), {excess}"
        )
    else:
        fact = f"the fastest is predicted to take {closed.fastest_ms:.4g} ms"
    return BudgetMissedError(
        f"no network meets {budget_ms:.4g} ms on {where}: {fact}; raise --budget-ms or lower "
        f"--speedup{wider}",
        closed,
    )
