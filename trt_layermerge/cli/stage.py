"""From options to the pipeline and back: what every verb on a run does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from trt_layermerge.cli.console import RichReporter, error_console, print_result
from trt_layermerge.cli.options import SharedOptions, StageOptions
from trt_layermerge.cli.verb import overrides
from trt_layermerge.cli.views import stage_view
from trt_layermerge.pipeline.options import Reporter, RunOptions

Result: TypeAlias = dict[str, Any]


def run_stage(stage: str, options: StageOptions, *, trust_engine: bool = False) -> Result:
    """Does one stage of a run, prints its result and returns it."""
    request = request_of(options, trust_engine=trust_engine)
    from trt_layermerge.pipeline import api

    return report(options, lambda reporter: api.run_stage(stage, request, reporter), stage)


def request_of(options: StageOptions, *, trust_engine: bool = False) -> RunOptions:
    """Returns what the options of a stage ask of the pipeline."""
    return RunOptions(
        run=options.run,
        runs_dir=options.runs_dir,
        recipe=options.recipe,
        overrides=overrides(options),
        trust_engine=trust_engine,
        verbose=options.verbosity,
    )


def report(options: SharedOptions, work: Callable[[Reporter], Result], stage: str) -> Result:
    """Does some work, its progress on stderr; prints and returns the result of a stage."""
    with RichReporter(error_console(), options.verbosity) as reporter:
        result = work(reporter)
    if result:  # only the first of several processes has one
        print_result(result, None if options.as_json else stage_view(stage, result))
    return result
