"""From options to the pipeline and back: what every verb on a run does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from trt_layermerge.cli.console import RichReporter, error_console, print_result
from trt_layermerge.cli.options import SharedOptions, StageOptions
from trt_layermerge.cli.verb import overrides
from trt_layermerge.cli.views import stage_view
from trt_layermerge.pipeline.options import Reporter, RunOptions

Result: TypeAlias = dict[str, Any]


def run_stage(stage: str, options: StageOptions, always: Mapping[str, Any] | None = None) -> Result:
    """Does one stage of a run, prints its result and returns it.

    Args:
        stage: Its name.
        options: What was typed.
        always: Keys of the recipe that the stage sets whatever was typed.
    """
    request = request_of(options, always)
    from trt_layermerge.pipeline import api

    return report(options, lambda reporter: api.run_stage(stage, request, reporter), stage)


def request_of(options: StageOptions, always: Mapping[str, Any] | None = None) -> RunOptions:
    """Returns what the options of a stage ask of the pipeline."""
    return RunOptions(
        run=options.run,
        runs_dir=options.runs_dir,
        recipe=options.recipe,
        overrides={**overrides(options), **(always or {})},
        trust_engine=getattr(options, "trust_engine", False),
        verbose=options.verbosity,
    )


def report(options: SharedOptions, work: Callable[[Reporter], Result], stage: str) -> Result:
    """Does some work, its progress on stderr; prints and returns the result of a stage.

    Args:
        options: What was typed.
        work: What is done; given who shows its progress.
        stage: Name of the stage, which decides what is shown.
    """
    with RichReporter(error_console(), options.verbosity) as reporter:
        result = work(reporter)
    if result:  # only the first of several processes has one
        print_result(result, None if options.as_json else stage_view(stage, result))
    return result
