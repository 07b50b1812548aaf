"""``latency``: candidates to the latency table, measured here, over ssh, or by hand elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trt_layermerge.cli.options import StageOptions
from trt_layermerge.cli.stages import perform, request_of, run_stage
from trt_layermerge.cli.verb import option
from trt_layermerge.errors import UsageError

_DEVICE = "Another device"


@dataclass(frozen=True, kw_only=True)
class LatencyOptions(StageOptions):
    """Options of ``latency``."""

    ssh: str | None = option(
        "Measure there, with your own ssh and rsync; the run remembers it.",
        key="measure.host",
        metavar="HOST",
        panel=_DEVICE,
    )
    export_jobs: Path | None = option(
        "Measure nothing; write what is to be measured, to be carried to the device.",
        metavar="DIR",
        panel=_DEVICE,
    )
    import_file: Path | None = option(
        "Take the results.jsonl that the device wrote; the run measures by it.",
        "--import",
        metavar="FILE",
        panel=_DEVICE,
    )


def latency(options: LatencyOptions) -> None:
    """Measures the latency of every candidate here or on another device, or continues to."""
    asked = [options.ssh, options.export_jobs, options.import_file]
    if sum(value is not None for value in asked) > 1:
        raise UsageError("--ssh, --export-jobs and --import exclude one another; type one of them")
    if options.export_jobs is None and options.import_file is None:
        run_stage("latency", options)
        return
    from trt_layermerge.pipeline import remote

    request, folder, file = request_of(options), options.export_jobs, options.import_file
    if folder is not None:
        perform(options, lambda r: remote.export_jobs(request, folder, r), "jobs")
    if file is not None:
        perform(options, lambda r: remote.import_measurements(request, file, r), "latency")
