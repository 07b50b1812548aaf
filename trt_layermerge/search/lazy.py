"""Which candidates need an exact score: those that the frontier may use, and no others.

A first look at a candidate bounds its loss from below. Plans are looked for as if every such bound
were the loss; what they use is scored, and so on, until the frontier uses nothing that is only
bounded. If all bounds hold, it is the frontier of the whole table, for whatever was never scored
could not enter it even at its best (best-first search with an admissible bound).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.streams import at_widths
from trt_layermerge.core.tables import ImportanceTable, LatencyTable
from trt_layermerge.search.joint import offers_of
from trt_layermerge.search.problem import Problem

BOUND = 0.5
"""Share of the loss in a first look that the true loss is at least, mostly: of ResNet-20's 155
candidates a twentieth had less than 0.6 of it, by better repairs and more images. With 0.5 the
frontier was that of the full table (``docs/results/lazy-tables.md``), with 0.8 it was not."""

FASTEST = 4.0
"""Speed-up up to which the frontier is made exact; far beyond it no network is worth having."""

Score = Callable[[Sequence[Candidate]], ImportanceTable]


def refine(
    problem: Problem, table: LatencyTable, score: Score, bound: float = BOUND
) -> ImportanceTable:
    """Returns the importance with an exact score of everything that the frontier may need.

    Args:
        problem: What is searched; its importance has a first look at each candidate at least.
        table: Latencies of everything that a candidate runs.
        score: Scores candidates exactly; returns the whole table with them.
        bound: Share of the loss in a first look that the true one is at least.
    """
    found = problem.importance
    while True:
        optimistic = _bounded(found, bound)
        wanted = [
            candidate
            for candidate in used_by_frontiers(problem, table, optimistic)
            if found[candidate].images is not None
        ]
        if not wanted:
            return found
        found = score(wanted)


def used_by_frontiers(
    problem: Problem, table: LatencyTable, importance: ImportanceTable
) -> list[Candidate]:
    """Returns the candidates that plans of the frontier use, of any family of kinds, by place.

    Args:
        problem: What is searched.
        table: Latencies of everything that a candidate runs.
        importance: In place of the problem's own.
    """
    whole = problem.frontier(table, importance, ()).latency_ms[0] + table.overhead_ms
    fastest = whole / FASTEST - table.overhead_ms
    used: dict[Candidate, None] = {}
    for offered in offers_of(problem):
        frontier = problem.frontier(table, importance, offered)
        # The first one that is too fast counts too: it may only seem better than slower ones.
        first = max(0, int(np.searchsorted(frontier.latency_ms, fastest)) - 1)
        for index in range(first, len(frontier)):
            options = frontier.solution(index).options
            used |= dict.fromkeys(o.payload for o in options if not o.payload.original)
    used = dict.fromkeys(at_widths(problem.graph, candidate, {}) for candidate in used)
    # By place, so that recorded values of the network serve all that begin there.
    return sorted((c for c in used if not c.original), key=lambda c: (c.block.start, c.block.end))


def _bounded(importance: ImportanceTable, bound: float) -> ImportanceTable:
    """Returns the table with every loss of a first look at its bound."""
    entries = {
        key: entry if entry.images is None else replace(entry, delta=bound * entry.delta)
        for key, entry in importance.entries.items()
    }
    return ImportanceTable(entries, importance.notes)
