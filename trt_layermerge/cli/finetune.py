"""``finetune``: the chosen plan to trained weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from trt_layermerge.cli.options import StageOptions
from trt_layermerge.cli.stage import run_stage
from trt_layermerge.cli.verb import Key


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(StageOptions):
    """Options of ``finetune``."""

    preset: Annotated[
        str | None,
        typer.Option(help="Name of a training recipe; none trains nothing."),
        Key("finetune.preset"),
    ] = None
    start: Annotated[
        Literal["repair", "original"] | None,
        typer.Option(help="Start from repaired blocks, or from the original weights."),
        Key("finetune.start"),
    ] = None


def finetune(options: FinetuneOptions) -> None:
    """Trains the network of the plan; continues where it stopped."""
    run_stage("finetune", options)
