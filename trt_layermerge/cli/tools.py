"""The verbs that work on no run: a machine, a folder of jobs, a bundle."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import Literal

from trt_layermerge.cli.console import RichReporter, error_console, print_result
from trt_layermerge.cli.engines import rebuild_view
from trt_layermerge.cli.options import OutputOptions
from trt_layermerge.cli.verb import argument, option
from trt_layermerge.cli.views import agent_view, doctor_view


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(OutputOptions):
    """Options of ``doctor``."""

    runs_dir: Path = option("Folder whose disk is looked at.", default=Path("runs"))


def doctor(options: DoctorOptions) -> None:
    """Shows the machine: what works, what is missing and what to type."""
    from trt_layermerge.doctor import examine
    from trt_layermerge.doctor.host import Host

    findings = [asdict(finding) for finding in examine(Host.local(options.runs_dir))]
    result = {"findings": findings}
    print_result(result, None if options.as_json else doctor_view(result))


@dataclass(frozen=True, kw_only=True)
class AgentOptions(OutputOptions):
    """Options of ``agent``."""

    jobs_dir: Path = argument("What latency --export-jobs wrote.", default=MISSING)
    backend: str | None = option("Measure with it, not with the backend that the jobs name.")


def agent(options: AgentOptions) -> None:
    """Measures a folder of jobs on this device, or continues to; a crash costs one of them."""
    from trt_layermerge.pipeline.agent import work_through

    with RichReporter(error_console(), options.verbosity) as reporter:
        result = work_through(options.jobs_dir, options.backend, reporter)
    print_result(result, None if options.as_json else agent_view(result))


@dataclass(frozen=True, kw_only=True)
class RebuildOptions(OutputOptions):
    """Options of ``rebuild``."""

    bundle: Path = argument("Folder that package wrote.", default=MISSING, show_default=False)
    backend: Literal["tensorrt", "tensorrt_rtx"] | None = option(
        "What builds it; by default what the recipe names, or is installed."
    )
    precision: Literal["fp32", "fp16", "int8"] | None = option(
        "Another precision that the bundle has a network for."
    )


def rebuild(options: RebuildOptions) -> None:
    """Builds the engine of a bundle for this machine, and replaces the old one."""
    from trt_layermerge.pipeline import api

    result = api.rebuild(options.bundle, options.backend, options.precision)
    print_result(result, None if options.as_json else rebuild_view(result))
