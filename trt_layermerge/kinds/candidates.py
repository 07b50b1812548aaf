"""Layer graph → candidates."""

from __future__ import annotations

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
    """Returns every candidate of a graph, ordered by block; no two of the same key.

    Those that cannot stand in it, or are too large to fit, are among them: ``kinds.refusal`` says
    which and why.

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
    limits = PAPER if rules == "paper" else limits or Limits()
    found: dict[CandidateKey, Candidate] = {}
    for block in graph.blocks(rules):
        if len(block) > limits.max_units:
            continue
        for kind in kinds_of(rules):
            for candidate in kind.candidates(graph, block, limits):
                found.setdefault(candidate.key, candidate)
    return tuple(found.values())
