"""Layer graph → candidates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import get_args

from trt_layermerge.core.candidate import Candidate, CandidateKey, original_candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.streams import slim_graph
from trt_layermerge.core.unit import Block, Rules
from trt_layermerge.errors import UsageError
from trt_layermerge.kinds.kind import KeepingKind, Kind
from trt_layermerge.kinds.limits import PAPER, Limits
from trt_layermerge.kinds.registry import kinds_named


def enumerate_candidates(
    graph: LayerGraph,
    rules: Rules = "full",
    limits: Limits | None = None,
    kinds: Iterable[str] | None = None,
) -> tuple[Candidate, ...]:
    """Returns every candidate that can stand in a graph, ordered by block; no two of the same key.

    Args:
        graph: The traced network, as ``trace`` returns it.
        rules: ``paper`` gives the published candidates, with the published counts; ``full`` every
            kind that is on by default, bounded by ``limits``.
        limits: Bounds for ``full``; the defaults of ``Limits`` when None.
        kinds: Names of the kinds to offer, in place of those of ``full``.

    Raises:
        UsageError: If the rules are neither of the two, or there is no kind of a name.
    """
    if rules not in get_args(Rules):
        raise UsageError(f"there are no rules {rules!r}; choose paper or full")
    return tuple(c for c, why in judged_candidates(graph, rules, limits, kinds) if why is None)


def judged_candidates(
    graph: LayerGraph, rules: Rules, limits: Limits | None, kinds: Iterable[str] | None = None
) -> Iterator[tuple[Candidate, str | None]]:
    """Yields also the candidates that cannot stand in a graph, or are too large to fit, and why.

    A unit that stays as it is always can.

    Args:
        graph: The traced network.
        rules: ``full``, or ``paper`` for the published kinds and limits.
        limits: How large blocks and kernels may be; None for the usual ones, unused by ``paper``.
        kinds: Names of the kinds; None for those of the rules.
    """
    used = kinds_named(rules, kinds)
    limits = PAPER if rules == "paper" else limits or Limits()
    found: set[CandidateKey] = set()
    for block in graph.blocks(rules):
        if len(block) > limits.max_units and not graph.branch_at(block):
            continue
        if len(block) == 1:
            original = original_candidate(graph, block.start)
            found.add(original.key)
            yield original, None
        for kind in used:
            for candidate in kind.candidates(graph, block, limits):
                if candidate.key in found:
                    continue
                found.add(candidate.key)
                if candidate.widths:  # a unit at the widths of its streams
                    yield candidate, _slim_refusal(graph, kind, candidate)
                    continue
                why = kind.refusal(graph, candidate)
                yield candidate, why
                if why is None:
                    more = (v for other in used for v in other.variants(graph, candidate))
                    yield from ((v, _slim_refusal(graph, kind, v)) for v in more)


def _slim_refusal(graph: LayerGraph, kind: Kind, candidate: Candidate) -> str | None:
    """Returns why a candidate cannot stand where its streams are narrower, or None if it can."""
    widths = dict(candidate.widths)
    kept = candidate.kept if isinstance(kind, KeepingKind) else range(*_span(candidate.block))
    for index in set(range(*_span(candidate.block))) - set(kept):
        name = graph.units[index].name
        ends = graph.read_streams.get(name), graph.written_streams.get(name)
        if (
            None not in ends
            and ends[0] is not ends[1]
            and widths.keys() & {e.name for e in ends if e}
        ):
            return "what is left out stands between two streams of channels of their own"
    return kind.refusal(slim_graph(graph, widths), candidate)


def _span(block: Block) -> tuple[int, int]:
    return block.start, block.end
