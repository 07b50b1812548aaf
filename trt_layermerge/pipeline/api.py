"""What the command line and programs call: a whole recipe, or one stage of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import cast

from trt_layermerge.core.device import Precision
from trt_layermerge.core.jsonio import Json, write_text
from trt_layermerge.errors import UsageError, command
from trt_layermerge.pipeline.expected import Expected
from trt_layermerge.pipeline.folder import RECIPE, RunFolder, locked, no_run
from trt_layermerge.pipeline.launched import launched_group, only_alone
from trt_layermerge.pipeline.options import (
    PACKAGE,
    STAGES,
    NullReporter,
    Reporter,
    RunOptions,
)
from trt_layermerge.pipeline.preflight import preflight
from trt_layermerge.pipeline.pretrained import completed
from trt_layermerge.pipeline.recipe import load_recipe, remembered
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.several import TABLES, each, single, speedups_of
from trt_layermerge.pipeline.stage import Stage, perform, reads_of, refuse_stale

CHOSEN = STAGES[STAGES.index("search") :]
"""The stages that follow from a plan. What comes before them only adds to tables."""


CHECKED = STAGES[1 : STAGES.index("merge")]
"""The stages that take long."""


def run_recipe(recipe: Path | None, options: RunOptions, reporter: Reporter | None = None) -> Json:
    """Does every stage of a recipe in order and returns ``summary.json``.

    A stage whose inputs are unchanged is skipped, so the same call continues an interrupted run.
    Of several speed-ups, each gets a run of its own beside this one, which has the tables; a row
    for each is returned then (``pipeline.several``).

    Args:
        recipe: YAML file; None for the recipe that the run remembers.
        options: Name and folder of the run, overrides, and which stages.
        reporter: Told the progress.

    Raises:
        AccuracyGateError: If the result exceeds a limit; the report is written all the same.
        DeviceError: If another process works on the run.
        LayerMergeError: One of its kinds (``errors.py``); what was done stays done.
    """
    only_alone("a whole run")
    reporter = reporter or NullReporter()
    if speedups := speedups_of(options):
        source = open_run(recipe, single(options, min(speedups)), reporter)
        if options.only_stage is None:
            with locked(source.folder):
                _stages(source, TABLES, options.from_stage)
        found = each(source.folder, options, partial(_several, reporter), reporter)
        if options.only_stage is None:
            found["page"] = str(_compared(source.folder, options, found["plans"]))
        return found
    run = open_run(recipe, options, reporter)
    with locked(run.folder):
        return _whole(run, options)


def _compared(folder: RunFolder, options: RunOptions, rows: Sequence[Json]) -> Path:
    """Writes the page that compares the runs of several speed-ups; returns its path."""
    from trt_layermerge.pipeline.stages.report import report_of
    from trt_layermerge.report.plans import Planned, write_plans

    def planned(row: Json) -> Planned:
        finished = "goes" in row
        request = RunOptions(row["run"], options.runs_dir)
        report = report_of(open_run(None, request, NullReporter())) if finished else None
        return Planned(row["speedup"], row["run"], report, row["error"] or "")

    return write_plans(tuple(map(planned, rows)), folder.root)


def _several(reporter: Reporter, options: RunOptions) -> Json:
    return run_recipe(options.recipe, options, reporter)


def _whole(run: Run, options: RunOptions) -> Json:
    if options.only_stage is not None:
        return _alone(stage(options.only_stage), run, again=True)
    again = _stages(run, STAGES, options.from_stage)
    remember(run)
    for name in STAGES:
        stage(name).gate(run)
    if run.recipe.package.targets:  # what fails a gate is not bundled
        perform(stage(PACKAGE), run, again=again or options.from_stage == PACKAGE)
    return stage(STAGES[-1]).result(run)


def _stages(run: Run, names: Sequence[str], from_stage: str | None) -> bool:
    """Does stages in order; returns whether the last one had to be done again in any case."""
    run.refuse_no_images()
    begun = (run.folder / RECIPE).is_file()
    expected = Expected(run)

    @cache
    def check() -> None:
        preflight(run)
        for note in run.image_notes:
            run.reporter.note(note)
        if not begun:  # or there would be nothing that the run could go on with
            remember(run)

    def begin(name: str) -> None:
        check()
        if name == "importance":
            run.session.check_goal(limit_ms=run.recipe.verify.max_latency_ms)
        expected.begin(names[names.index(name) :])

    again = False
    for name in names:
        again = again or name == from_stage
        # Inspecting takes seconds, and tells best what is wrong with a network or its input.
        before = None if name == STAGES[0] else partial(begin, name)
        if perform(stage(name), run, again=again, before=before):
            expected.done(name)
            if name in CHOSEN:
                remember(run)
    return again


def run_stage(name: str, options: RunOptions, reporter: Reporter | None = None) -> Json:
    """Does one stage of a run, if it is not up to date and settled, and returns its result.

    ``latency`` brings ``inspect`` along, which takes seconds. ``search`` for several speed-ups
    makes a run of each (``pipeline.several``).
    Of several processes that were launched together, the first one does so; the others help it and
    return nothing.

    Args:
        name: Name of the stage, one of ``STAGES`` or ``PACKAGE``.
        options: Name and folder of the run, recipe and overrides.
        reporter: Told the progress; None for nobody.

    Raises:
        UsageError: If an earlier stage that it needs was not done yet.
        LayerMergeError: One of its kinds (``errors.py``).
    """
    reporter = reporter or NullReporter()
    if name == "search" and (speedups := speedups_of(options)):
        source = open_run(options.recipe, single(options, max(speedups)), reporter)
        reads_of(stage(name), source.folder)
        searched = partial(run_stage, name, reporter=reporter)
        return each(source.folder, options, searched, reporter)
    run = open_run(options.recipe, options, reporter)
    with launched_group(name, run.recipe.device) as launched:
        if launched is not None and launched.group.index > 0:
            if launched.wait():
                from trt_layermerge.pipeline.stages.finetune import train_with

                train_with(run, launched.group)
            return {}
        if launched is not None:
            run.reporter.note(f"{launched.group.count} processes train together")
        with locked(run.folder):
            return _do(stage(name), replace(run, launched=launched))


def _do(needed: Stage, run: Run) -> Json:
    if needed.name == "latency":  # where measuring on another device begins
        perform(stage("inspect"), run)
        if not (run.folder / RECIPE).is_file():
            remember(run)
    return _alone(needed, run, again=not needed.settled(run))


def _alone(needed: Stage, run: Run, *, again: bool) -> Json:
    """Does one stage; returns its result."""
    refuse_stale(needed, map(stage, STAGES), run)
    if needed.name == PACKAGE:
        _refuse_other(run)
    # Of a run that is done stage by stage too, the long ones do not begin in vain.
    long = needed.name in CHECKED and run.recipe.data.train is not None
    perform(needed, run, again=again, before=partial(preflight, run) if long else None)
    remember(run)
    needed.gate(run)
    return needed.result(run)


def _refuse_other(run: Run) -> None:
    """Checks that a bundle's recipe is the one that the run was made by, but for what is bundled.

    Limits may be others too: they are held to what was measured.

    Raises:
        UsageError: If it is not, or the run has none.
    """
    kept = load_recipe(run.folder / RECIPE, {}, remembered=True)
    names = [name for name in type(kept).model_fields if name not in (PACKAGE, "verify")]
    others = [name for name in names if getattr(kept, name) != getattr(run.recipe, name)]
    if others:
        raise UsageError(
            f"a bundle ships what made its network, and {', '.join(others)} are others than the "
            f"run {run.folder.root.name!r} was made by; leave these options out, or do the run "
            f"with them first: {command('run', run.folder.root)}"
        )


def open_run(recipe: Path | None, options: RunOptions, reporter: Reporter) -> Run:
    """Returns the run of a recipe or of a name, new or begun; writes nothing.

    Args:
        recipe: YAML file; None for the recipe that the run remembers.
        options: Name and folder of the run, and overrides.
        reporter: Told the progress.

    Raises:
        UsageError: If there is neither a recipe, nor a remembered one, nor a model.
    """
    folder = RunFolder(options.runs_dir / options.run)
    kept = folder / RECIPE
    source = recipe or (kept if kept.is_file() else None)
    if source is None and "model.name" not in options.overrides:
        raise UsageError(
            f"{no_run(folder)}; begin it with a recipe (--recipe FILE, or: trt-layermerge run "
            "RECIPE.yaml) or with --model"
        )
    own = source == kept
    chosen = completed(load_recipe(source, options.overrides, remembered=own))
    return Run(chosen, folder, reporter, options.trust_engine)


def remember(run: Run) -> None:
    """Writes the recipe, with what was typed beside it, into the run's folder.

    A begun run takes to another recipe only when work by it has succeeded: neither a mistyped name
    nor a goal that cannot be reached sticks, and no bundle has another one than its network.
    """
    path, text = run.folder / RECIPE, remembered(run.recipe)
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def rebuild(folder: Path, library: str | None, precision: Precision | None) -> Json:
    """Builds the engine of a bundle for this machine and puts it into the bundle's place.

    Raises what ``deploy.bundle.rebuild.rebuild`` raises.

    Args:
        folder: The bundle.
        library: ``tensorrt`` or ``tensorrt_rtx``; None for what the recipe says.
        precision: Another precision that the bundle holds; None for the same.
    """
    from trt_layermerge.deploy.bundle.rebuild import rebuild

    return rebuild(folder, library, precision)


def stage(name: str) -> Stage:
    """Returns a stage by name."""
    return cast(Stage, import_module(f"trt_layermerge.pipeline.stages.{name}").STAGE)
