"""``runs`` and ``status``: what there is and how far it is; both do nothing."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from trt_layermerge.cli.console import print_result
from trt_layermerge.cli.options import RUNS, OutputOptions, run_at
from trt_layermerge.cli.tables import Result, percent, table, times
from trt_layermerge.cli.verb import option


@dataclass(frozen=True, kw_only=True)
class RunsOptions(OutputOptions):
    """Options of ``runs``."""

    runs_dir: Path = option("Folder of all runs.", default=RUNS)


@dataclass(frozen=True, kw_only=True)
class StatusOptions(RunsOptions):
    """Options of ``status``."""

    run: str = option(
        "Name of the run, or a path to its folder.", default=MISSING, show_default=False
    )


def runs(options: RunsOptions) -> None:
    """Lists the runs in a folder: network, stage reached, speed-up, cost, verdict."""
    from trt_layermerge.pipeline.status import runs_in

    result = runs_in(options.runs_dir)
    print_result(result, None if options.as_json else runs_view(result))


def status(options: StatusOptions) -> None:
    """Shows the stages of a run: done, stale, failed or to do, and what to type next."""
    from trt_layermerge.pipeline.folder import RunFolder
    from trt_layermerge.pipeline.status import status_of

    name, runs_dir = run_at(options.run, options.runs_dir)
    result = status_of(RunFolder(runs_dir / name))
    print_result(result, None if options.as_json else status_view(result))


def runs_view(result: Result) -> RenderableType:
    """Returns a row for every run."""
    if not result["runs"]:
        return Text(
            f"no runs in {result['folder']}; begin one: trt-layermerge run RECIPE.yaml, or name "
            "another folder: --runs-dir DIR"
        )
    columns = ("run", "network", "reached", "speed-up", "cost", "verdict")
    rows = [
        (
            row["run"],
            row.get("network", "").rpartition("/")[2],
            row.get("reached"),
            times(row.get("speedup")),
            _cost(row),
            row["verdict"],
        )
        for row in result["runs"]
    ]
    return table(f"Runs in {result['folder']}", columns, rows)


def _cost(row: Result) -> str | None:
    """Returns what of the accuracy is lost, or without labels how many answers are kept."""
    if row.get("accuracy_drop") is not None:
        return f"{percent(row['accuracy_drop'])} of accuracy"
    kept = row.get("agreement")
    return None if kept is None else f"{percent(kept)} same answers"


def status_view(result: Result) -> RenderableType:
    """Returns a row for every stage, the verdict, and what to type next."""
    rows = [
        (
            row["stage"],
            row["state"],
            None if row["seconds"] is None else f"{row['seconds']:.1f}",
            row["why"] or "",
        )
        for row in result["stages"]
    ]
    what = f"{result['network']} in {result['folder']}: {result['verdict']}"
    return Group(
        table(result["run"], ("stage", "state", "seconds", "why"), rows),
        Text(what, overflow="fold"),
        *([Text(f"→ {result['next']}", overflow="fold")] if result["next"] else []),
    )
