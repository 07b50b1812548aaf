"""``agent``: a folder of measuring jobs to its results."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from trt_layermerge.cli.console import RichReporter, error_console, print_result
from trt_layermerge.cli.options import OutputOptions
from trt_layermerge.cli.verb import argument, option
from trt_layermerge.cli.views import agent_view


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
