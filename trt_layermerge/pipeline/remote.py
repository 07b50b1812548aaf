"""Latency measured by hand on a device out of reach: jobs out, answers in, two round trips.

The first trip measures every block and some random networks; ``search`` then predicts a plan. The
second measures the plans around it, and ``search`` chooses among those.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from trt_layermerge.core.candidate import Candidate, original_candidate
from trt_layermerge.core.conv import Spec
from trt_layermerge.core.jsonio import Json, damage, read_json, sha256_file, write_bytes
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import UsageError, command
from trt_layermerge.measure.agent.jobs import Protocol
from trt_layermerge.measure.agent.results import RESULTS
from trt_layermerge.measure.agent.zipapp import NAME as AGENT
from trt_layermerge.measure.agent.zipapp import write_zipapp
from trt_layermerge.measure.isolated import pair_jobs
from trt_layermerge.measure.jobs import (
    Job,
    Measurements,
    drift_words,
    read_measurements,
    write_jobs,
)
from trt_layermerge.pipeline.api import open_run, remember, run_stage, stage
from trt_layermerge.pipeline.folder import locked
from trt_layermerge.pipeline.options import NullReporter, Reporter, RunOptions
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.stage import perform
from trt_layermerge.search.sampling import promising, sample_plans
from trt_layermerge.session.pieces import SpecModels
from trt_layermerge.session.recorded import (
    Exported,
    Network,
    Recorded,
    Role,
    exported_path,
    imported_path,
)
from trt_layermerge.session.searching import BUILDS


@dataclass
class _Wanted:
    """What a run still has to have measured, and the keys that the jobs of it get."""

    specs: list[Spec]
    plans: list[tuple[Role, MergePlan]]
    spec_keys: dict[str, Spec] = field(default_factory=dict)
    networks: list[Network] = field(default_factory=list)


def export_jobs(options: RunOptions, directory: Path, reporter: Reporter | None = None) -> Json:
    """Writes everything that a run still needs measured as a folder of jobs, and the agent beside.

    Blocks and random networks at first; after a search, the plans that it would have measured.

    Args:
        options: The run.
        directory: Where to; must be empty or missing.
        reporter: Told the progress.

    Raises:
        UsageError: If the folder is not empty, or nothing is left to measure.
        DeviceError: If it cannot be written.
    """
    if directory.is_dir() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty; name a folder that is, or a new one")
    run = open_run(options.recipe, options, reporter or NullReporter())
    with locked(run.folder):
        return _export(run, options, directory)


def _export(run: Run, options: RunOptions, directory: Path) -> Json:
    perform(stage("inspect"), run)
    remember(run)
    wanted = _wanted(run)
    if not wanted.specs and not wanted.plans:
        raise UsageError(
            f"everything that the run {options.run!r} needs measured was imported; choose by it: "
            f"{command('search', run.folder.root)}"
        )
    measure, original = run.recipe.measure, run.session.networks.original_onnx
    protocol = Protocol(measure.backend, rounds=measure.rounds)
    manifest = write_jobs(directory, _jobs(run, wanted, original), protocol, original)
    exported = Exported(
        manifest,
        measure.backend,
        measure.precision,
        measure.batch,
        sha256_file(run.folder / "graph.json"),
        Job("sentinel", (original,)).key,
        wanted.spec_keys,
        wanted.networks,
    )
    exported.save(exported_path(run.folder.root, manifest))
    write_zipapp(directory / AGENT)
    return _told(options, directory, exported)


def _told(options: RunOptions, directory: Path, exported: Exported) -> Json:
    sizes = [path.stat().st_size for path in directory.rglob("*") if path.is_file()]
    return {
        "jobs": str(directory),
        "manifest": exported.manifest,
        "blocks": len(exported.specs),
        "networks": len(exported.networks),
        "megabytes": round(sum(sizes) / 1e6, 1),
        "on_the_device": shlex.join(["python3", f"{directory.name}/{AGENT}", directory.name]),
        "then_here": command(
            "latency", options.runs_dir / options.run, "--import", f"{directory}/{RESULTS}"
        ),
    }


def _wanted(run: Run) -> _Wanted:
    """Returns the specs without an answer, random plans if there are none, and open finalists."""
    graph, measure = run.graph, run.recipe.measure
    candidates = [
        *run.session.candidates,
        *(original_candidate(graph, u.index) for u in graph.units),
    ]
    recorded = Recorded.of(run.folder.root, measure)
    specs = list(dict.fromkeys(spec for c in candidates for spec in c.costs))
    plans: list[tuple[Role, MergePlan]] = []
    if not recorded.outcomes("sample"):
        samples = sample_plans(graph, promising(graph, candidates), measure.networks, run.seed)
        plans += [("sample", plan) for plan in (MergePlan.of(graph, []), *samples)]
    elif measure.recorded:
        known = recorded.outcomes("finalist")
        plans += [("finalist", p) for p in _finalists(run) if p.changed not in known]
    return _Wanted([spec for spec in specs if spec not in recorded.entries], plans)


def _finalists(run: Run) -> list[MergePlan]:
    """Returns the plans that ``search`` looked at and could not measure."""
    path = run.folder / "finalists.json"
    if not path.is_file():
        return []
    rows = read_json(path, "finalists")["finalists"]
    with damage(path):
        return [
            MergePlan.of(run.graph, [Candidate.from_json(c) for c in row["candidates"]])
            for row in rows
            if row["measured_ms"] is None and row["error"] is None
        ]


def _jobs(run: Run, wanted: _Wanted, original: bytes) -> Iterator[Job]:
    """Yields the jobs one by one, and notes their keys in ``wanted``."""
    networks, measure = run.session.networks, run.recipe.measure
    model_of = SpecModels(networks)
    steps = len(wanted.specs) + len(wanted.plans)
    for count, spec in enumerate(wanted.specs):
        run.reporter.progress("writing jobs", count, steps)
        job = Job(str(spec), (model_of(spec),))
        wanted.spec_keys[job.key] = spec
        yield job
    for count, (role, plan) in enumerate(wanted.plans, len(wanted.specs)):
        run.reporter.progress("writing jobs", count, steps)
        builds = BUILDS if role == "finalist" and measure.engines else 1
        label = f"{role} of {len(plan.changed)} replacements"
        pair = pair_jobs(original, networks.plan_onnx(plan), builds, label)
        wanted.networks.append(Network(role, plan.changed, tuple(job.key for job in pair)))
        yield from pair
    run.reporter.progress("writing jobs", steps, steps)


def import_measurements(options: RunOptions, path: Path, reporter: Reporter | None = None) -> Json:
    """Takes the answers to a run's jobs into the run, and returns the result of ``latency``.

    From then on the run measures nothing here (``measure.recorded``).

    Args:
        options: The run.
        path: ``results.jsonl`` of the agent.
        reporter: Told the progress.

    Raises:
        UsageError: If there is no such file, it answers other jobs, or not all of them, or another
            device was measured before.
        CorruptInputError: If it is damaged.
    """
    recorded = {"measure.host": None, "measure.recorded": True}
    options = replace(options, overrides={**options.overrides, **recorded})
    if not path.is_file():
        raise UsageError(f"there is no file {path}; fetch {RESULTS} from the device first")
    found = read_measurements(path)
    run = open_run(options.recipe, options, reporter or NullReporter())
    with locked(run.folder):
        _check(run, found, path)
        write_bytes(imported_path(run.folder.root, found.manifest), path.read_bytes())
    if found.drift is not None:
        run.reporter.note(drift_words(found.drift))
    return run_stage("latency", options, reporter)


def _check(run: Run, found: Measurements, path: Path) -> None:
    """Refuses answers that are not those of this run, or not all. Raises ``UsageError``."""
    root, measure = run.folder.root, run.recipe.measure
    meaning = exported_path(root, found.manifest)
    if not meaning.is_file():
        raise UsageError(
            f"{path} answers the jobs {found.manifest[:12]}…, which the run {root.name!r} did not "
            "export; name the run that did (--run), or export: "
            f"{command('latency', root, '--export-jobs', 'DIR')}"
        )
    known = Exported.load(meaning)
    asked = measure.backend, measure.precision, measure.batch
    if known.setting != asked:
        raise UsageError(
            f"{path} was measured with backend, precision and batch {known.setting}, but the run "
            f"asks for {asked}; type --backend {known.backend} --precision {known.precision} "
            f"--batch {known.batch}, or export the jobs again"
        )
    if found.device.backend != known.backend:
        raise UsageError(
            f"{path} was measured with the backend {found.device.backend}, not with "
            f"{known.backend}; on the device move {RESULTS} away, and run the agent again without "
            "--backend"
        )
    if known.graph != sha256_file(run.folder / "graph.json"):
        raise UsageError(
            f"{path} was measured for another network or input than the run {root.name!r} has by "
            f"now; export the jobs again: {command('latency', root, '--export-jobs', 'DIR')}"
        )
    if missing := found.missing(known.keys):
        raise UsageError(
            f"{path} lacks {len(missing)} of {len(known.keys)} measurements; continue on the "
            f"device with the same command, python3 {AGENT} DIR, and import the file then"
        )
    before = Recorded.of(root, measure)
    if before.files and before.device != found.device:
        raise UsageError(
            f"{path} was measured on {found.device}, but the run's other latencies on "
            f"{before.device}, and such latencies do not compare; measure on that device in that "
            "power mode, or begin another run"
        )
