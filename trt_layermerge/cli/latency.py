"""``latency``: candidates to the latency table, measured here, over ssh, or by hand elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from trt_layermerge.cli.options import StageOptions
from trt_layermerge.cli.stage import report, request_of, run_stage
from trt_layermerge.cli.verb import Key
from trt_layermerge.errors import UsageError

_DEVICE = "Another device"


@dataclass(frozen=True, kw_only=True)
class LatencyOptions(StageOptions):
    """Options of ``latency``."""

    ssh: Annotated[
        str | None,
        typer.Option(
            "--ssh",
            metavar="HOST",
            help="Measure there, with your own ssh and rsync; the run remembers it.",
            rich_help_panel=_DEVICE,
        ),
        Key("measure.host"),
    ] = None
    export_jobs: Annotated[
        Path | None,
        typer.Option(
            "--export-jobs",
            metavar="DIR",
            help="Measure nothing; write what is to be measured, to be carried to the device.",
            rich_help_panel=_DEVICE,
        ),
    ] = None
    import_file: Annotated[
        Path | None,
        typer.Option(
            "--import",
            metavar="FILE",
            help="Take the results.jsonl that the device wrote; the run measures by it.",
            rich_help_panel=_DEVICE,
        ),
    ] = None


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
        report(options, lambda listener: remote.export_jobs(request, folder, listener), "jobs")
    if file is not None:
        report(
            options, lambda listener: remote.import_measurements(request, file, listener), "latency"
        )
