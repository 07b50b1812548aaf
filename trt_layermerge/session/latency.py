"""Candidates → their latencies, fitted to whole networks measured on the device.

Blocks are measured one by one, then some whole networks of random plans are built and measured
beside the original, and the block latencies are corrected until they add up to networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.candidate import Candidate, original_candidate
from trt_layermerge.core.conv import PieceSpec, Spec, spec_from_json
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.jsonio import damage, read_lines, write_lines
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyKey, LatencyTable
from trt_layermerge.errors import UnsupportedModelError, UsageError, command
from trt_layermerge.measure.fit import Observation, fit_latency, settled
from trt_layermerge.measure.table import SpecRequest
from trt_layermerge.search.evaluator import Measured
from trt_layermerge.search.sampling import (
    in_portions,
    inside_of,
    sample_plans,
    specs_of,
    useful,
)
from trt_layermerge.session.networks import Networks
from trt_layermerge.session.pieces import SpecModels
from trt_layermerge.session.recorded import Recorded
from trt_layermerge.session.settings import MeasureSection

LONGEST_MS = 1e9
"""No network takes eleven days."""

FILES = ("latency_bare.jsonl", "networks.jsonl", "latency.jsonl")


@dataclass(frozen=True)
class Sampled:
    """A whole network that was measured: its speed-up, latency, and everything that it runs.

    What of it counts twice stands in ``inside`` (``Observation``).
    """

    ms: float
    ratio: float
    specs: tuple[Spec, ...]
    inside: tuple[Spec, ...] = ()

    @property
    def observation(self) -> Observation:
        """What a latency table is fitted to."""
        return Observation(self.specs, self.ms, self.inside)


@dataclass(frozen=True)
class Latencies:
    """What was measured of a network's candidates.

    Attributes:
        bare: Latency of every block alone.
        table: The same, fitted to whole networks.
        original_ms: Latency of the original network.
        samples: The whole networks.
    """

    bare: LatencyTable
    table: LatencyTable
    original_ms: float
    samples: tuple[Sampled, ...]

    def save(self, folder: Path) -> None:
        """Writes ``FILES``. Raises ``DeviceError``."""
        self.bare.save(folder / FILES[0])
        rows = [
            {
                "ms": s.ms,
                "ratio": s.ratio,
                "specs": [spec.to_json() for spec in s.specs],
                **({"inside": [spec.to_json() for spec in s.inside]} if s.inside else {}),
            }
            for s in self.samples
        ]
        header = {"original_ms": self.original_ms, "device": self.bare.device.to_json()}
        write_lines(folder / FILES[1], "networks", header, rows)
        self.table.save(folder / FILES[2])

    @staticmethod
    def load(folder: Path) -> Latencies:
        """Returns what ``save`` wrote. Raises ``UsageError`` and ``CorruptInputError``."""
        path = folder / FILES[1]
        header, rows = read_lines(path, "networks")
        with damage(path):
            samples = tuple(
                Sampled(
                    float(row["ms"]),
                    float(row["ratio"]),
                    tuple(spec_from_json(s) for s in row["specs"]),
                    tuple(spec_from_json(s) for s in row.get("inside", ())),
                )
                for row in rows
            )
            original_ms = float(header["original_ms"])
            figures = [original_ms, *(figure for s in samples for figure in (s.ms, s.ratio))]
            if not all(0 < figure < LONGEST_MS for figure in figures):
                raise ValueError("a latency or a speed-up is not a positive number")
            device = DeviceInfo.from_json(header["device"])
        bare, table = (LatencyTable.load(folder / name) for name in (FILES[0], FILES[2]))
        found = Latencies(bare, table, original_ms, samples)
        for other in (bare.device, device):
            found.refuse_other(other, folder)
        return found

    def refuse_other(self, device: DeviceInfo, folder: Path) -> None:
        """Checks that networks on a device compare with the table of the run in a folder.

        Raises:
            UsageError: If it is another device, or another version of what runs them.
        """
        if device != self.table.device:
            raise UsageError(
                f"blocks were measured on {self.table.device}, and whole networks would be on "
                f"{device}; such latencies do not compare; measure both on one: "
                f"{command('run', folder, '--from', 'latency')}"
            )


def nothing_merges(graph: LayerGraph, candidates: Sequence[Candidate]) -> str | None:
    """Returns why no block of a network may be replaced, or None where one may."""
    if not all(candidate.original for candidate in candidates):
        return None
    reasons = "".join(f"; {barrier.reason}" for barrier in graph.barriers[:3])
    return (
        f"nothing in this network can merge: it has {len(graph.units)} convolutions that merging "
        f"may touch, and no two that follow each other{reasons}"
    )


def measure_latency(
    networks: Networks,
    candidates: Sequence[Candidate],
    measure: MeasureSection,
    store: Path,
    seed: int,
    recorded: Recorded | None,
) -> Latencies:
    """Returns the latency of every candidate and of every unit left as it is.

    Args:
        networks: The network, and how its plans are timed.
        candidates: What may replace its blocks.
        measure: How much is measured.
        store: SQLite file of block measurements; what it has is not measured again.
        seed: Of the random plans.
        recorded: Imported measurements, which take the place of measuring; None to measure.

    Raises:
        UnsupportedModelError: If there is nothing that may replace a block.
        DeviceError: If the device is not there, or no network could be built and run.
        UsageError: If precision or batch cannot be measured, or imported blocks are missing.
        CorruptInputError: If the store is damaged.
    """
    graph, tell = networks.graph, networks.tell
    if (why := nothing_merges(graph, candidates)) is not None:
        raise UnsupportedModelError(why)
    offered = [*candidates, *(original_candidate(graph, u.index) for u in graph.units)]
    asked = SpecRequest(
        [spec for c in offered for spec in c.costs],
        measure.precision,
        measure.batch,
        measure.rounds,
        store,
        lambda: networks.original_onnx,
        SpecModels(networks),
    )
    bare = networks.meter.specs(asked, lambda done, total: tell.progress("measuring", done, total))
    bare = _with_untimed(bare, offered, measure, tell)
    if recorded is not None:
        original_ms, measured = recorded.measured(graph, "sample", None)
    else:
        faster = useful(graph, offered, bare, measure.precision, measure.batch)
        plans = sample_plans(graph, faster, measure.networks, seed)
        original_ms, measured = _sampled(networks, plans, bare, measure)
        if len(measured) <= len(plans):
            tell.note(f"{len(measured)} whole networks will do: each is predicted by the others")
    samples, table = _fitted(measured, bare, measure, tell)
    return Latencies(bare, table, original_ms, samples)


def _sampled(
    networks: Networks, plans: Sequence[MergePlan], bare: LatencyTable, measure: MeasureSection
) -> tuple[float, list[Measured]]:
    """Returns the original's latency, and it and the networks of plans measured.

    Every second one first, then the others by halves, until each is predicted well by the others.
    """
    untouched = MergePlan.of(networks.graph, [])
    first, *rest = in_portions(plans)
    original_ms, measured = networks.measure([untouched, *first], None, measure.rounds)
    for portion in rest:
        if settled(_fitted(measured, bare, measure, Callbacks())[1]):
            break
        measured += networks.measure(portion, original_ms, measure.rounds)[1]
    return original_ms, measured


def _fitted(
    measured: Sequence[Measured], bare: LatencyTable, measure: MeasureSection, tell: Callbacks
) -> tuple[tuple[Sampled, ...], LatencyTable]:
    """Returns the networks that tell something, and the table fitted to them."""
    usable = _explained(_running(measured, tell), bare, measure, tell)
    samples = tuple(Sampled(m.ms, m.ratio, specs_of(m.plan), inside_of(m.plan)) for m in usable)
    observations = [sample.observation for sample in samples]
    return samples, fit_latency(bare, observations, measure.precision, measure.batch)


def _with_untimed(
    bare: LatencyTable, offered: Sequence[Candidate], measure: MeasureSection, tell: Callbacks
) -> LatencyTable:
    """Returns the table with branches that could not be timed costing what their units do.

    Not every part of a network can be exported alone. The rest of such a branch counts as nothing,
    so leaving it out saves at least what is predicted.
    """
    entries = dict(bare.entries)

    def key(spec: Spec) -> LatencyKey:
        return spec, measure.precision, measure.batch

    failed: dict[PieceSpec, str] = {}
    for candidate in sorted(offered, key=lambda c: c.block):
        for spec in candidate.extras if candidate.original else ():
            error = entries[key(spec)].error
            if isinstance(spec, PieceSpec) and error is not None and spec not in failed:
                units_ms = sum(entries[key(inside)].ms for inside in candidate.inside)
                entries[key(spec)] = replace(entries[key(spec)], ms=units_ms)
                failed[spec] = error
    if failed:
        tell.note(
            f"{len(failed)} sorts of branches could not be timed as a whole, and only the "
            f"convolutions in them count; the first said: {next(iter(failed.values()))}"
        )
    return replace(bare, entries=entries)


def _running(measured: Sequence[Measured], tell: Callbacks) -> list[Measured]:
    """Returns the networks that could be measured."""
    failed = [m.error for m in measured if m.error is not None]
    if failed:
        tell.note(
            f"{len(failed)} of {len(measured)} networks could not be measured and are left out; "
            f"the first said: {failed[0]}"
        )
    return [m for m in measured if m.error is None]


def _explained(
    measured: list[Measured], bare: LatencyTable, measure: MeasureSection, tell: Callbacks
) -> list[Measured]:
    """Returns the networks all of whose blocks have a latency; all, where that leaves none.

    Where the networks were drawn before anything was measured, a block may run in a network that
    cannot run alone.
    """

    def failure(network: Measured) -> str | None:
        keys = ((spec, measure.precision, measure.batch) for spec in specs_of(network.plan))
        entries = map(bare.entries.__getitem__, keys)
        return next((entry.error for entry in entries if not isfinite(entry.ms)), None)

    errors = [error for error in map(failure, measured) if error is not None]
    if not errors or len(errors) == len(measured):
        return measured
    tell.note(
        f"{len(errors)} of {len(measured)} networks contain a block that could not be timed alone, "
        f"and are left out; the first said: {errors[0]}"
    )
    return [network for network in measured if failure(network) is None]
