"""Layer graph → candidates."""

from __future__ import annotations

from trt_layermerge.core.candidate import Candidate, CandidateKey
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import Rules
from trt_layermerge.search.kinds import kinds_of
from trt_layermerge.search.limits import PAPER, Limits

__all__ = ["Limits", "enumerate_candidates"]


def enumerate_candidates(
    graph: LayerGraph, rules: Rules = "full", limits: Limits | None = None
) -> tuple[Candidate, ...]:
    """Returns every candidate of a graph, ordered by block; no two of the same key.

    Args:
        graph: The traced network.
        rules: ``paper`` gives the published candidates, with the published counts; ``full`` every
            kind, bounded by ``limits``.
        limits: Bounds for ``full``; the defaults of ``Limits`` when None.
    """
    limits = PAPER if rules == "paper" else limits or Limits()
    found: dict[CandidateKey, Candidate] = {}
    for block in graph.blocks(rules):
        if len(block) > limits.max_units:
            continue
        for kind in kinds_of(rules):
            for candidate in kind.candidates(graph, block, limits):
                found.setdefault(candidate.key, candidate)
    return tuple(found.values())
