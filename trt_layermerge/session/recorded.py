"""Latencies measured elsewhere by hand: what a run exported as jobs, and the answers it imported.

``jobs/exported/ID.json`` says what each job of a manifest means to this run, and
``jobs/imported/ID.jsonl`` is the file that came back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.conv import Spec, spec_from_json
from trt_layermerge.core.device import DeviceInfo, Precision
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.jsonio import Json, damage, read_json, sha256_file, write_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import LatencyEntry, LatencyTable
from trt_layermerge.errors import UsageError, command
from trt_layermerge.measure.isolated import beside
from trt_layermerge.measure.jobs import Measurements, read_measurements
from trt_layermerge.measure.meter import Outcome, silent
from trt_layermerge.measure.table import Progress, SpecRequest
from trt_layermerge.search.evaluator import Measured
from trt_layermerge.session.networks import with_reference
from trt_layermerge.session.settings import MeasureSection

Role: TypeAlias = Literal["sample", "finalist"]
Changes: TypeAlias = tuple[Candidate, ...]
"""The candidates of a plan that replace something."""


@dataclass(frozen=True)
class Network:
    """A plan's network among exported jobs.

    Attributes:
        role: ``sample``: to fit the table to; ``finalist``: to be chosen.
        changed: The candidates that make it.
        keys: Keys of its jobs, one for every build.
    """

    role: Role
    changed: Changes
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Exported:
    """What the jobs of one manifest mean.

    Attributes:
        manifest: Its id.
        backend: What was to be measured with.
        precision: Type of weights and maps.
        batch: Images per run.
        graph: SHA-256 of the ``graph.json`` that the plans belong to.
        sentinel: Key of the original network alone.
        specs: By key of their jobs.
        networks: Whole networks.
    """

    manifest: str
    backend: str
    precision: Precision
    batch: int
    graph: str
    sentinel: str
    specs: Mapping[str, Spec]
    networks: Sequence[Network]

    @property
    def keys(self) -> list[str]:
        """Keys of all jobs."""
        pairs = [key for network in self.networks for key in network.keys]
        return [self.sentinel, *self.specs, *pairs]

    @property
    def setting(self) -> tuple[str, Precision, int]:
        """Backend, precision and batch."""
        return self.backend, self.precision, self.batch

    def save(self, path: Path) -> None:
        """Writes the file. Raises ``DeviceError``."""
        body = {
            "manifest": self.manifest,
            "backend": self.backend,
            "precision": self.precision,
            "batch": self.batch,
            "graph": self.graph,
            "sentinel": self.sentinel,
            "specs": {key: spec.to_json() for key, spec in self.specs.items()},
            "networks": [
                {"role": n.role, "changed": [c.to_json() for c in n.changed], "keys": list(n.keys)}
                for n in self.networks
            ],
        }
        write_json(path, "exported", body)

    @staticmethod
    def load(path: Path) -> Exported:
        """Returns what a file says. Raises ``UsageError`` and ``CorruptInputError``."""
        body = read_json(path, "exported")
        with damage(path):
            return Exported(
                str(body["manifest"]),
                str(body["backend"]),
                body["precision"],
                int(body["batch"]),
                str(body["graph"]),
                str(body["sentinel"]),
                {str(key): spec_from_json(spec) for key, spec in body["specs"].items()},
                [_network(network) for network in body["networks"]],
            )


def _network(body: Json) -> Network:
    changed = tuple(Candidate.from_json(c) for c in body["changed"])
    return Network(body["role"], changed, tuple(str(key) for key in body["keys"]))


def exported_path(run: Path, manifest: str) -> Path:
    """Returns where a run keeps the meaning of a manifest's jobs."""
    return run / "jobs" / "exported" / f"{manifest}.json"


def imported_path(run: Path, manifest: str) -> Path:
    """Returns where a run keeps the answers to a manifest's jobs."""
    return run / "jobs" / "imported" / f"{manifest}.jsonl"


@dataclass(frozen=True)
class Recorded:
    """All imported answers that belong to the network and the setting of a run.

    Attributes:
        root: Folder of the run.
        files: Meaning and answers, by falling age.
    """

    root: Path
    files: Sequence[tuple[Exported, Measurements]]

    @staticmethod
    def of(root: Path, measure: MeasureSection) -> Recorded:
        """Returns what a run has imported, without what belongs to another setting or network.

        Args:
            root: Folder of the run.
            measure: How it measures.

        Raises:
            CorruptInputError: If one of its files is damaged.
        """
        setting = measure.backend, measure.precision, measure.batch
        graph = sha256_file(root / "graph.json")
        files = []
        paths = (root / "jobs" / "imported").glob("*.jsonl")
        for path in sorted(paths, key=lambda p: (p.stat().st_mtime_ns, p.name)):
            known = Exported.load(exported_path(root, path.stem))
            if known.setting == setting and known.graph == graph:
                files.append((known, read_measurements(path)))
        return Recorded(root, files)

    @property
    def run(self) -> str:
        """Name of the run."""
        return self.root.name

    @property
    def device(self) -> DeviceInfo:
        """Where all of it was measured. Raises ``UsageError`` if nothing was imported."""
        if not self.files:
            raise UsageError(f"the run {self.run!r} has no imported latencies yet; {self.remedy}")
        return self.files[-1][1].device

    @property
    def remedy(self) -> str:
        """What to type for more measurements."""
        typed = command("latency", self.root, "--export-jobs", "DIR")
        return f"export the jobs and measure them on the device: {typed}"

    @cached_property
    def entries(self) -> dict[Spec, LatencyEntry]:
        """What is known of specs; a success before a failure, and else the newest."""
        found: dict[Spec, LatencyEntry] = {}
        for known, answers in self.files:
            for key, spec in known.specs.items():
                entry = answers.answers[key].entry()
                if entry.error is None or spec not in found:
                    found[spec] = entry
        return found

    def outcomes(self, role: Role) -> dict[Changes, Outcome]:
        """Returns what came of the networks of a role."""
        return {
            network.changed: beside([answers.answers[key] for key in network.keys], answers)
            for network, answers in self._networks()
            if network.role == role
        }

    def _networks(self) -> Iterator[tuple[Network, Measurements]]:
        for known, answers in self.files:
            for network in known.networks:
                yield network, answers

    def measured(
        self, graph: LayerGraph, role: Role, reference_ms: float | None
    ) -> tuple[float, list[Measured]]:
        """Returns the original's latency in ms and the networks of a role (``outcomes``).

        Args:
            graph: The traced network.
            role: Which networks.
            reference_ms: The original's latency in the first measurement; None if this is it.

        Raises:
            DeviceError: If this is the first measurement and all of it failed.
        """
        found = self.outcomes(role)
        if not found:
            return reference_ms or 0.0, []
        plans = [MergePlan.of(graph, changed) for changed in found]
        return with_reference(plans, list(found.values()), reference_ms)


class RecordedMeter:
    """Knows what was imported, and measures nothing."""

    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded

    def device(self) -> DeviceInfo:
        """Returns the device that the imported files name. Raises ``UsageError``."""
        return self.recorded.device

    def specs(self, asked: SpecRequest, on_progress: Progress = silent) -> LatencyTable:
        """Returns the imported latency of every spec. Raises ``UsageError`` if some are missing."""
        unique = list(dict.fromkeys(asked.specs))
        device, entries = self.device(), self.recorded.entries
        missing = [spec for spec in unique if spec not in entries]
        if missing:
            raise UsageError(
                f"{len(missing)} of {len(unique)} blocks were not measured on {device}, such as "
                f"{missing[0]}; {self.recorded.remedy}"
            )
        table = {(spec, asked.precision, asked.batch): entries[spec] for spec in unique}
        return LatencyTable(device, table, notes={"rounds": asked.rounds})

    def networks(
        self,
        original: bytes,
        others: Sequence[bytes],
        rounds: int,
        builds: int = 1,
        on_progress: Progress = silent,
    ) -> list[Outcome]:
        """Measures nothing. Raises ``UsageError`` that says what to type instead."""
        raise UsageError(
            f"the latencies of the run {self.recorded.run!r} were imported, so networks cannot be "
            f"measured from here; {self.recorded.remedy}, or measure here again: --set "
            "measure.recorded=false"
        )
