"""``stream``: the channels that a stage's additions share become fewer, in the whole stage.

A unit that reads or puts out such a stream has fewer channels there, and so has whatever replaces a
block (``core.streams``); the search chooses one width for all of them (``search.states``). Which
channels remain is decided by all that read the stream together (``merge.slim``).
"""

from __future__ import annotations

from collections.abc import Iterator

from trt_layermerge.core.candidate import Candidate, original_candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.streams import KIND, life, variants
from trt_layermerge.core.unit import Block, ConvUnit, Rules
from trt_layermerge.kinds.kind import Family, KeepingKind
from trt_layermerge.kinds.limits import Limits


class StreamWidth(KeepingKind):
    """Units as they are, at fewer channels; offered where it is asked for (``search.kinds``).

    Attributes:
        shares: Of a stream's channels, which are offered.
        multiple: Of what the number of channels is one, and at least: processors like eights.
    """

    name = KIND
    label = "on fewer channels"
    colour = "#7a4fb5"
    rules: tuple[Rules, ...] = ()
    family: Family = "reduction"
    shares: tuple[float, ...] = (0.75, 0.5, 0.25)
    multiple = 8

    def widths(self, graph: LayerGraph) -> dict[str, tuple[int, ...]]:
        """Returns the widths that are offered of each stream that may be narrower, falling."""
        found = {}
        for stream in graph.streams:
            if stream.refusal is None and life(graph, stream) is not None:
                offered = {
                    self.multiple * max(1, round(share * stream.channels / self.multiple))
                    for share in self.shares
                }
                found[stream.name] = tuple(
                    sorted((w for w in offered if w < stream.channels), reverse=True)
                )
        return found

    def candidates(self, graph: LayerGraph, block: Block, limits: Limits) -> Iterator[Candidate]:
        """Yields a unit at all widths of the streams that it touches."""
        if len(block) == 1 and isinstance(graph.units[block.start], ConvUnit):
            yield from self.variants(graph, original_candidate(graph, block.start))

    def variants(self, graph: LayerGraph, candidate: Candidate) -> Iterator[Candidate]:
        """Yields a candidate of any kind at these widths."""
        yield from variants(graph, candidate, self.widths(graph))
