"""Measuring through a folder of jobs: what crashes, hangs or eats the memory costs one entry.

The agent works through the folder, in a child process here (``run_here``) or on another device
(``measure.ssh``), and builds and times in a process apart from itself, which it replaces where a
job breaks it. What an interrupted agent finished is kept: the same jobs asked for again continue in
the same folder.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from trt_layermerge.core.conv import Spec
from trt_layermerge.core.device import DeviceInfo, Precision
from trt_layermerge.core.tables import LatencyEntry, LatencyTable
from trt_layermerge.errors import (
    CorruptInputError,
    DeviceError,
    LayerMergeError,
    UnsupportedModelError,
    error_of,
)
from trt_layermerge.measure.agent.jobs import Protocol, load_manifest
from trt_layermerge.measure.agent.results import RESULTS
from trt_layermerge.measure.bench import BURST_MS
from trt_layermerge.measure.command import follow
from trt_layermerge.measure.jobs import (
    Answer,
    Job,
    Measurements,
    drift_words,
    read_measurements,
    write_jobs,
)
from trt_layermerge.measure.meter import Beside, Failed, Outcome, silent
from trt_layermerge.measure.store import LatencyStore
from trt_layermerge.measure.table import Progress, SpecRequest, layer_models

AGENT_PROTOCOL = "agent 1"
"""How the agent measures, as it goes into the key of every stored latency."""

Agent: TypeAlias = Callable[[Path, Progress], None]
"""Works through a folder of jobs, continuing what is begun; raises ``DeviceError``."""

_ELSEWHERE = "To measure on another device, give latency --ssh HOST or --export-jobs DIR"


class AgentMeter:
    """Measures by an agent, in folders of jobs.

    Args:
        backend: Name of the backend that the agent uses.
        work: Where the folders go.
        agent: What works through them.
        fallback: Float type of what int8 leaves in float there.
        on_note: Called with what a user should know.
    """

    def __init__(
        self,
        backend: str,
        work: Path,
        agent: Agent,
        fallback: Precision = "fp32",
        on_note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.backend, self.work, self.agent = backend, work, agent
        self.fallback, self.on_note = fallback, on_note

    def device(self) -> DeviceInfo:
        """Returns what the agent says of its device, asked once. Raises ``DeviceError``."""
        return self._device

    @cached_property
    def _device(self) -> DeviceInfo:
        return self._measure("device", [], Protocol(self.backend), None, silent).device

    def specs(self, asked: SpecRequest, on_progress: Progress = silent) -> LatencyTable:
        """Returns the latency of every spec; each is stored as soon as the agent has ended.

        Raises:
            CorruptInputError: If the store or the agent's answers are damaged.
            DeviceError: If the agent does not answer.
            UsageError: If precision or batch cannot be measured.
        """
        unique = list(dict.fromkeys(asked.specs))
        key = asked.precision, asked.batch
        with LatencyStore(asked.store, self.device(), AGENT_PROTOCOL) as store:
            entries = {s: e for s in unique if (e := store.get(s, *key)) is not None}
            missing = [spec for spec in unique if spec not in entries]
            if missing:
                measured = self._measure_specs(missing, asked, store, on_progress)
                entries |= measured
        table = {(spec, *key): entries[spec] for spec in unique}
        return LatencyTable(self.device(), table, notes={"rounds": asked.rounds})

    def _measure_specs(
        self, specs: Sequence[Spec], asked: SpecRequest, store: LatencyStore, on_progress: Progress
    ) -> dict[Spec, LatencyEntry]:
        keys: dict[str, Spec] = {}
        entries: dict[Spec, LatencyEntry] = {}
        model_of = asked.model_of or layer_models(asked.precision, asked.batch, self.fallback)

        def jobs() -> Iterator[Job]:
            for spec in specs:
                try:
                    model = model_of(spec)
                except UnsupportedModelError as error:  # a piece that cannot be exported
                    entries[spec] = LatencyEntry(math.inf, error=str(error))
                    continue
                job = Job(str(spec), (model,))
                keys[job.key] = spec
                yield job

        protocol = Protocol(self.backend, rounds=asked.rounds)
        try:
            found = self._measure("specs", jobs(), protocol, asked.sentinel(), on_progress)
        finally:
            for key, answer in self._answered("specs").items():
                if key in keys:
                    entries[keys[key]] = answer.entry()
            good = [(s, e) for s, e in entries.items() if e.error is None]
            store.put(good, asked.precision, asked.batch)
        if found.device != self.device():
            raise DeviceError(
                f"the device changed while it was measured: it was {self.device()}, and then "
                f"{found.device}; leave its power mode alone and type the same command again"
            )
        if found.drift is not None:
            self.on_note(drift_words(found.drift))
        return entries

    def networks(
        self,
        original: bytes,
        others: Sequence[bytes],
        rounds: int,
        builds: int = 1,
        on_progress: Progress = silent,
    ) -> list[Outcome]:
        """Returns each network's timing beside the original's, pair by pair.

        A network of which some builds fail counts by those that do not.

        Raises:
            CorruptInputError: If the agent's answers are damaged.
            DeviceError: If the agent does not answer.
        """
        jobs = [pair_jobs(original, other, builds) for other in others]
        protocol = Protocol(self.backend, rounds=rounds, burst_ms=BURST_MS)
        all_jobs = (job for pair in jobs for job in pair)
        found = self._measure("networks", all_jobs, protocol, None, on_progress)
        return [beside([found.answers[job.key] for job in pair], found) for pair in jobs]

    def _measure(
        self,
        name: str,
        jobs: Iterable[Job],
        protocol: Protocol,
        sentinel: bytes | None,
        on_progress: Progress,
    ) -> Measurements:
        """Has a folder of jobs worked through; returns the answers to all of them.

        The models are deleted once they are answered, the manifest and the answers stay.
        """
        folder = self.work / name
        identity = write_jobs(folder, jobs, protocol, sentinel)
        keys = list(load_manifest(folder).jobs)
        if not self._begun(folder, identity, keys):
            (folder / RESULTS).unlink(missing_ok=True)
        self.agent(folder, on_progress)
        found = read_measurements(folder / RESULTS)
        missing = found.missing(keys) if found.manifest == identity else keys
        if missing:
            raise DeviceError(
                f"the agent ended with {len(missing)} of {len(keys)} jobs in {folder} not done; "
                "type the same command again to continue"
            )
        shutil.rmtree(folder / "models", ignore_errors=True)
        return found

    def _begun(self, folder: Path, identity: str, keys: Sequence[str]) -> bool:
        """Whether the folder holds answers to some of these jobs, but not to all of them."""
        if not (folder / RESULTS).is_file():
            return False
        try:
            found = read_measurements(folder / RESULTS)
        except CorruptInputError:
            return False
        return found.manifest == identity and bool(found.missing(keys))

    def _answered(self, name: str) -> dict[str, Answer]:
        """Returns whatever the agent has answered in a folder, also where it was interrupted."""
        try:
            identity = load_manifest(self.work / name).id
            found = read_measurements(self.work / name / RESULTS)
        except LayerMergeError:
            return {}  # what kept the agent from answering is being raised already
        same = found.manifest == identity and found.device == self.device()
        return dict(found.answers) if same else {}


def pair_jobs(original: bytes, other: bytes, builds: int, label: str = "network") -> list[Job]:
    """Returns the jobs that time a network beside the original, one for every build of both.

    Args:
        original: ONNX model of the original network.
        other: ONNX model of the other one.
        builds: How many.
        label: What the other one is called in messages.
    """
    return [Job(f"original and {label}", (original, other), build) for build in range(builds)]


def beside(answers: Sequence[Answer], found: Measurements) -> Outcome:
    """Returns the answers to all builds of a pair of networks, some of ``found``, as one."""
    good = [answer for answer in answers if answer.error is None]
    if not good:
        return Failed(answers[0].error or "it was not measured")
    pairs = tuple((answer.timings[0], answer.timings[1]) for answer in good)
    return Beside(pairs, found.conditions(good))


def run_here(folder: Path, on_progress: Progress) -> None:
    """Works through a folder of jobs in a child process.

    Raises:
        LayerMergeError: What the agent ended with, of the same kind.
    """
    command = [sys.executable, "-m", "trt_layermerge.measure.agent", str(folder)]
    ended = follow(command, on_progress)
    if ended.code and ended.complaint:
        here = (folder / RESULTS).exists() or ended.code != DeviceError.exit_code
        raise error_of(ended.code, ended.complaint if here else f"{ended.complaint}. {_ELSEWHERE}")
    if ended.code:
        raise DeviceError(
            f"the measuring process ended with code {ended.code} and said: {ended.said}; type the "
            "same command again to continue"
        )
