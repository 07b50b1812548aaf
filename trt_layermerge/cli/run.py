"""``run``: a recipe to everything, in order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trt_layermerge.cli.options import GoalOptions, SharedOptions, run_at
from trt_layermerge.cli.stages import perform
from trt_layermerge.cli.verb import argument, option, overrides
from trt_layermerge.errors import UsageError
from trt_layermerge.pipeline.options import STAGES, RunOptions

_STAGE = "STAGE"


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(SharedOptions, GoalOptions):
    """Options of ``run``."""

    recipe: Path | None = argument("What to build; a begun run (--run) remembers its own.")
    run: str | None = option(
        "Name of the run, or a path to its folder; by default the recipe's file name."
    )
    from_stage: str | None = option("First stage to do again.", "--from", metavar=_STAGE)
    only_stage: str | None = option("The only stage to do.", "--only", metavar=_STAGE)


def run(options: RecipeOptions) -> None:
    """Does every stage of a recipe in order, and skips what is done."""
    name, runs_dir = run_at(_name(options), options.runs_dir)
    request = RunOptions(
        run=name,
        runs_dir=runs_dir,
        recipe=options.recipe,
        overrides=overrides(options),
        from_stage=options.from_stage,
        only_stage=options.only_stage,
        verbose=options.verbosity,
    )
    from trt_layermerge.pipeline import api

    # A whole run answers with what its last stage, the report, has to say.
    shown = options.only_stage or STAGES[-1]
    perform(options, lambda r: api.run_recipe(request.recipe, request, r), shown)


def _name(options: RecipeOptions) -> str:
    if options.run is not None:
        return options.run
    if options.recipe is None:
        raise UsageError(
            "nothing to run: name a recipe (trt-layermerge run RECIPE.yaml) or a begun run "
            "(trt-layermerge run --run NAME)"
        )
    return options.recipe.stem
