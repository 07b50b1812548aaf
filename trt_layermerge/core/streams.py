"""Narrower streams: a graph at other widths, and its candidates there.

A plan may run the channels that a stage's additions share (``Stream``) at less than their full
width. A graph of these widths has the same units, and every candidate of the one graph has its
counterpart in the other: what it reads and puts out is as wide as the streams are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import TypeAlias

from trt_layermerge.core.candidate import Candidate, open_residual, original_candidate
from trt_layermerge.core.conv import AddSpec, ConvSpec, Spec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceEntry, ImportanceTable
from trt_layermerge.core.unit import Block, ConvUnit, Residual, Shortcut, Stream, Unit

Life: TypeAlias = tuple[int, int]
"""First and last unit whose place depends on a stream's width."""

KIND = "stream"
"""Kind of a unit that stays, at the widths of its streams."""


def slim_graph(graph: LayerGraph, widths: Mapping[str, int]) -> LayerGraph:
    """Returns the graph in which the named streams have so many channels."""
    if not widths:
        return graph

    def spec_of(name: str, spec: ConvSpec) -> ConvSpec:
        reads, writes = graph.read_streams.get(name), graph.written_streams.get(name)
        taken = spec.in_channels if reads is None else widths.get(reads.name, spec.in_channels)
        given = spec.out_channels if writes is None else widths.get(writes.name, spec.out_channels)
        groups = taken if spec.depthwise else spec.groups
        return replace(spec, in_channels=taken, out_channels=given, groups=groups)

    def unit_of(unit: Unit) -> Unit:
        if not isinstance(unit, ConvUnit):
            return unit
        return replace(unit, spec=spec_of(unit.name, unit.spec))

    def path_of(path: Shortcut) -> Shortcut:
        if path.conv is None or path.spec is None:
            return path
        return replace(path, spec=spec_of(path.conv, path.spec))

    return replace(
        graph,
        units=tuple(map(unit_of, graph.units)),
        residuals=tuple(
            Residual(r.start, r.end, tuple(map(path_of, r.shortcuts))) for r in graph.residuals
        ),
        streams=tuple(replace(s, channels=widths.get(s.name, s.channels)) for s in graph.streams),
    )


def touched(graph: LayerGraph, candidate: Candidate) -> tuple[Stream, ...]:
    """Returns the streams on whose width it depends what a candidate runs.

    What runs nothing hands on its input: it depends on none, unless what comes out belongs to
    another stream, and then both have to be what they were.
    """
    first, last = graph.units[candidate.block.start], graph.units[candidate.block.end - 1]
    reads, writes = graph.read_streams.get(first.name), graph.written_streams.get(last.name)
    found = [] if not candidate.costs and reads is writes else [reads, writes]
    residual = open_residual(graph, candidate)
    for path in residual.shortcuts if residual and candidate.costs else ():
        found += [graph.read_streams.get(path.conv or "")]
    return tuple(dict.fromkeys(stream for stream in found if stream is not None))


def at_widths(graph: LayerGraph, candidate: Candidate, widths: Mapping[str, int]) -> Candidate:
    """Returns a candidate's counterpart where streams have other widths; itself where all is equal.

    Args:
        graph: The graph at full width.
        candidate: One of it, or the counterpart of one at whatever widths.
        widths: Channels of streams by name; those that it does not touch do not count.
    """
    of_it = {s.name: s.channels for s in touched(graph, candidate)}
    told = {n: widths[n] for n in sorted(of_it) if widths.get(n, of_it[n]) != of_it[n]}
    if told == dict(candidate.widths):
        return candidate
    slim, block = slim_graph(graph, told), candidate.block
    if candidate.original or candidate.kind == KIND:
        unit = original_candidate(slim, block.start)
        if not told:
            return unit
        return replace(unit, kind=KIND, original=False, widths=tuple(told.items()))
    (taken, _), (given, _) = slim.ends(block)
    convs = list(candidate.convs)
    if convs:
        convs[0] = _resized(convs[0], taken, convs[0].out_channels)
        convs[-1] = _resized(convs[-1], convs[-1].in_channels, given)
    residual = slim.residual_ending_at.get(block.end)
    projections = iter(residual.projections if residual else ())
    extras: list[Spec] = []
    for extra in candidate.extras:
        if isinstance(extra, ConvSpec):
            extra = next(projections, extra)
        elif isinstance(extra, AddSpec):
            extra = replace(extra, channels=given)
        extras.append(extra)
    return replace(candidate, convs=tuple(convs), extras=tuple(extras), widths=tuple(told.items()))


def variants(
    graph: LayerGraph, candidate: Candidate, choices: Mapping[str, Iterable[int]]
) -> Iterator[Candidate]:
    """Yields the counterparts of a candidate at all narrower widths of the streams that it touches.

    Args:
        graph: The graph at full width.
        candidate: One of it.
        choices: Widths of streams by name, the full ones left out.
    """
    streams = [s for s in touched(graph, candidate) if candidate.costs]
    offered = [(s.channels, *choices.get(s.name, ())) for s in streams]
    for widths in product(*offered):
        found = at_widths(
            graph, candidate, {s.name: w for s, w in zip(streams, widths, strict=True)}
        )
        if found.widths:
            yield found


def life(graph: LayerGraph, stream: Stream) -> Life | None:
    """Returns between which units a stream's width matters, or None if no unit's does.

    A projection counts where its residual begins and where it ends.
    """
    names = {*stream.readers, *stream.writers}
    found = [unit.index for unit in graph.units if unit.name in names]
    for residual in graph.residuals:
        if any(path.conv in names for path in residual.shortcuts):
            found += [residual.start, residual.end - 1]
    return (min(found), max(found)) if found else None


def width_alone(graph: LayerGraph, stream: Stream, width: int) -> Candidate:
    """Returns what the loss of a narrower stream, all else as it is, is kept under in tables."""
    lived = life(graph, stream)
    assert lived is not None  # streams without units are never narrowed
    block = Block(lived[0], lived[1] + 1)
    return Candidate(block, KIND, (), (), widths=((stream.name, width),))


def alone_of(importance: ImportanceTable) -> Iterator[tuple[tuple[str, int], ImportanceEntry]]:
    """Yields name and width of every narrower stream that was scored alone, and its entry."""
    for (_, _, kind, kept, convs, widths), entry in importance.entries.items():
        if kind == KIND and widths and not kept and not convs:
            yield widths[0], entry


def with_channels(plan: MergePlan, importance: ImportanceTable) -> MergePlan:
    """Returns a plan with the channels that its narrower streams were scored with."""
    known = {key: entry.channels for key, entry in alone_of(importance) if entry.channels}
    found = {n: known[n, width] for n, width in plan.widths.items() if (n, width) in known}
    return replace(plan, channels={**found, **plan.channels})


def with_counterparts(
    graph: LayerGraph, importance: ImportanceTable, candidates: Iterable[Candidate]
) -> ImportanceTable:
    """Returns the table with what is known of candidates at narrower streams.

    There a replacement is taken to lose what it does at full width; a unit that stays loses
    nothing but the stream's own loss (``width_alone``).
    """
    entries = dict(importance.entries)
    for candidate in candidates:
        whole = at_widths(graph, candidate, {}) if candidate.widths else candidate
        if whole is not candidate and whole in importance:
            entries.setdefault(candidate.key, importance[whole])
    return ImportanceTable(entries, importance.notes)


def plan_at(graph: LayerGraph, widths: Mapping[str, int]) -> tuple[Candidate, ...]:
    """Returns every unit as it is, at these widths."""
    units = (original_candidate(graph, i) for i in range(len(graph.units)))
    return tuple(at_widths(graph, unit, widths) for unit in units)


def _resized(spec: ConvSpec, taken: int, given: int) -> ConvSpec:
    groups = taken if spec.groups > 1 and spec.groups == spec.in_channels else spec.groups
    return replace(spec, in_channels=taken, out_channels=given, groups=groups)
