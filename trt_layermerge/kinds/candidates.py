"""Layer graph → candidates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from trt_layermerge.core.candidate import Candidate, CandidateKey
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import Rules
from trt_layermerge.errors import UsageError
from trt_layermerge.kinds.limits import PAPER, Limits
from trt_layermerge.kinds.registry import kinds_of


def enumerate_candidates(
    graph: LayerGraph, rules: Rules = "full", limits: Limits | None = None
) -> tuple[Candidate, ...]:
    """Returns every candidate that can stand in a graph, ordered by block; no two of the same key.

    Args:
        graph: The traced network, as ``trace`` returns it.
        rules: ``paper`` gives the published candidates, with the published counts; ``full`` every
            kind, bounded by ``limits``.
        limits: Bounds for ``full``; the defaults of ``Limits`` when None.

    Raises:
        UsageError: If the rules are neither of the two.
    """
    if rules not in get_args(Rules):
        raise UsageError(f"there are no rules {rules!r}; choose paper or full")
    return tuple(c for c, why in judged_candidates(graph, rules, limits) if why is None)


def judged_candidates(
    graph: LayerGraph, rules: Rules, limits: Limits | None
) -> Iterator[tuple[Candidate, str | None]]:
    """Yields also the candidates that cannot stand in a graph, or are too large to fit, and why.

    A unit that stays as it is always can.

    Args:
        graph: The traced network.
        rules: ``full``, or ``paper`` for the published kinds and limits.
        limits: How large blocks and kernels may be; None for the usual ones, unused by ``paper``.
    """
    limits = PAPER if rules == "paper" else limits or Limits()
    found: set[CandidateKey] = set()
    for block in graph.blocks(rules):
        if len(block) > limits.max_units and not graph.branch_at(block):
            continue
        for kind in kinds_of(rules):
            for candidate in kind.candidates(graph, block, limits):
                if candidate.key not in found:
                    found.add(candidate.key)
                    stays = candidate.original
                    yield candidate, None if stays else kind.refusal(graph, candidate)
