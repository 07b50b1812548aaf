"""``inspect``: what a network is made of, and what may merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from trt_layermerge.cli.options import StageOptions
from trt_layermerge.cli.stage import run_stage
from trt_layermerge.cli.verb import Key


@dataclass(frozen=True, kw_only=True)
class InspectOptions(StageOptions):
    """Options of ``inspect``."""

    rules: Annotated[
        Literal["paper", "full"] | None,
        typer.Option(help="Which blocks and candidates exist."),
        Key("search.rules"),
    ] = None


def inspect(options: InspectOptions) -> None:
    """Shows units, segments, residuals, and what cannot merge and why."""
    run_stage("inspect", options)
