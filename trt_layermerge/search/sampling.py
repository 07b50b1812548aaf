"""Which candidates are worth measuring, and random plans of them to correct a table by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trt_layermerge.core.candidate import Candidate, original_candidate
from trt_layermerge.core.conv import AddSpec, ConvSpec, Spec
from trt_layermerge.core.device import Precision
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.streams import KIND, plan_at
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.search.states import agreeing

DEARER = 1.5
"""A merged block may cost this much more arithmetic and still be faster: it is one layer."""


FEWEST = 8
"""Networks that a table is corrected by at least, if there are as many."""


def specs_of(plan: MergePlan) -> tuple[Spec, ...]:
    """Returns everything that a plan's network runs, repetitions included.

    What stands inside a branch that stays is named, though it is part of the branch's own spec.
    """
    return tuple(spec for candidate in plan.candidates for spec in candidate.costs)


def inside_of(plan: MergePlan) -> tuple[Spec, ...]:
    """Returns what of ``specs_of`` the branches that stay contain, as it was in the original."""
    return tuple(spec for candidate in plan.candidates for spec in candidate.inside)


def useful(
    graph: LayerGraph,
    candidates: Sequence[Candidate],
    table: LatencyTable,
    precision: Precision,
    batch: int,
) -> list[Candidate]:
    """Returns the candidates that are faster than leaving their block as it is.

    Args:
        graph: The traced network.
        candidates: What to choose from; untouched units are left out.
        table: Latencies of all of them and of every untouched unit.
        precision: At which precision.
        batch: Images per run.

    Raises:
        UsageError: If one was never measured.
    """
    singles = [
        table.cost_ms(original_candidate(graph, i), precision, batch)
        for i in range(len(graph.units))
    ]
    return [
        c
        for c in candidates
        if not c.original
        and table.cost_ms(c, precision, batch) < sum(singles[c.block.start : c.block.end])
    ]


def promising(graph: LayerGraph, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Returns the candidates that may be faster than their block, where no latency is known yet.

    Those with less arithmetic, and those with fewer convolutions and ``DEARER`` times as much at
    most.
    """
    before = [_work(original_candidate(graph, i)) for i in range(len(graph.units))]

    def better(candidate: Candidate) -> bool:
        block = before[candidate.block.start : candidate.block.end]
        macs, convs = sum(m for m, _ in block), sum(c for _, c in block)
        new_macs, new_convs = _work(candidate)
        return new_macs < macs or (new_convs < convs and new_macs <= DEARER * macs)

    return [c for c in candidates if not c.original and better(c)]


def _work(candidate: Candidate) -> tuple[int, int]:
    """Returns multiply-accumulates and number of convolutions and pieces of a candidate."""
    macs = sum(spec.macs for spec in candidate.costs if isinstance(spec, ConvSpec))
    return macs, sum(not isinstance(spec, AddSpec) for spec in candidate.costs)


def sample_plans(
    graph: LayerGraph, candidates: Sequence[Candidate], count: int, seed: int
) -> list[MergePlan]:
    """Returns random plans from hardly changed to as changed as can be, evenly spread.

    Args:
        graph: The traced network.
        candidates: What may be used.
        count: How many plans; some may be the same.
        seed: Of all draws.
    """
    choices: dict[str, set[int]] = {}
    for name, width in (pair for candidate in candidates for pair in candidate.widths):
        choices.setdefault(name, set()).add(width)
    rng, plans = np.random.default_rng(seed), []
    for number in range(count):
        share = (number + 1) / (count + 1)
        widths = {
            name: int(rng.choice(sorted(found)))
            for name, found in choices.items()
            if rng.random() < share
        }
        by_start: dict[int, list[Candidate]] = {}
        for candidate in agreeing(graph, candidates, widths):
            if candidate.kind != KIND:
                by_start.setdefault(candidate.block.start, []).append(candidate)
        plans.append(_sample(graph, by_start, share, rng, widths))
    return plans


def in_portions(plans: Sequence[MergePlan]) -> list[list[MergePlan]]:
    """Returns plans in the portions that they are measured in, each evenly spread over them.

    Every second one, the most changed among them, then every second of the rest; all together
    where half of them would be fewer than ``FEWEST``.
    """
    half = list(plans[::-1][::2])
    if len(half) < FEWEST:
        return [list(plans)]
    rest = list(plans[::-1][1::2])
    return [portion for portion in (half, rest[::2], rest[1::2]) if portion]


def _sample(
    graph: LayerGraph,
    by_start: dict[int, list[Candidate]],
    share: float,
    rng: np.random.Generator,
    widths: Mapping[str, int],
) -> MergePlan:
    """Walks the chain and replaces a block wherever a draw falls below ``share``."""
    position, chosen = 0, []
    units = plan_at(graph, widths)
    while position < len(graph.units):
        here = by_start.get(position, [])
        if here and rng.random() < share:
            chosen.append(here[int(rng.integers(len(here)))])
            position = chosen[-1].block.end
        else:
            chosen.append(units[position])
            position += 1
    return MergePlan.of(graph, chosen)
