"""``search``: tables and a budget to a plan."""

from __future__ import annotations

from dataclasses import dataclass

from trt_layermerge.cli.options import GoalOptions, StageOptions
from trt_layermerge.cli.stage import run_stage


@dataclass(frozen=True, kw_only=True)
class SearchOptions(StageOptions, GoalOptions):
    """Options of ``search``."""


def search(options: SearchOptions) -> None:
    """Chooses the best plan within the budget, and writes the whole frontier."""
    run_stage("search", options)
