"""Options of a chain whose streams may be narrower: every position stands once for each width.

A stream is open between the first and the last unit whose place depends on its width. Nodes of the
chain are positions with the widths of the streams that are open there, in rising order of position;
an option leads from node to node and keeps what stays open. A stream's own loss counts where it
opens. So one pass of the dynamic programme chooses widths and replacements together, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import TypeAlias

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.streams import life, touched
from trt_layermerge.search.chain import Option

Figure: TypeAlias = Callable[[Candidate], float]
Losses: TypeAlias = Mapping[str, Mapping[int, float]]
"""What each narrower width of a stream adds to the score, by name."""


def chain_options(
    graph: LayerGraph,
    candidates: Iterable[Candidate],
    cost_ms: Figure,
    value: Figure,
    losses: Losses,
) -> tuple[int, list[Option]]:
    """Returns the number of the last node, and every option; payloads are candidates.

    Args:
        graph: The traced network.
        candidates: What may stand in its blocks' places, units as they are included.
        cost_ms: Latency of a candidate.
        value: Its score.
        losses: Widths of the streams that may be narrower; candidates at others are left out.
    """
    lives = {s.name: life(graph, s) for s in graph.streams if s.name in losses}
    full = {s.name: s.channels for s in graph.streams if s.name in losses}

    def opened(position: int) -> list[str]:
        return [n for n, span in lives.items() if span and span[0] < position <= span[1]]

    def node(position: int, widths: Mapping[str, int]) -> int:
        return nodes[position, tuple(widths[n] for n in open_at[position])]

    open_at = [opened(position) for position in range(len(graph.units) + 1)]
    nodes: dict[tuple[int, tuple[int, ...]], int] = {}
    for position, names in enumerate(open_at):
        for state in product(*((full[n], *losses[n]) for n in names)):
            nodes[position, state] = len(nodes)
    options = []
    for candidate in candidates:
        known, stated = losses.keys(), dict(candidate.widths)
        if any(name not in known or width not in losses[name] for name, width in stated.items()):
            continue
        start, end = candidate.block.start, candidate.block.end
        fixed = {s.name: stated.get(s.name, s.channels) for s in touched(graph, candidate)}
        names = list(dict.fromkeys([*open_at[start], *open_at[end], *(fixed.keys() & known)]))
        choices = [(fixed[n],) if n in fixed else (full[n], *losses[n]) for n in names]
        latency_ms, score = cost_ms(candidate), value(candidate)
        for chosen in product(*choices):
            widths = dict(zip(names, chosen, strict=True))
            opening = [n for n in names if n not in open_at[start] and widths[n] != full[n]]
            options.append(
                Option(
                    node(start, widths),
                    node(end, widths),
                    latency_ms,
                    score + sum(losses[n][widths[n]] for n in opening),
                    candidate,
                )
            )
    return len(nodes) - 1, options


def agreeing(
    graph: LayerGraph, candidates: Sequence[Candidate], widths: Mapping[str, int]
) -> list[Candidate]:
    """Returns the candidates that can stand where streams have exactly these widths."""
    return [
        c
        for c in candidates
        if dict(c.widths) == {s.name: widths[s.name] for s in touched(graph, c) if s.name in widths}
    ]
