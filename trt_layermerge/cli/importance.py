"""``importance``: candidates to the importance table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from trt_layermerge.cli.options import StageOptions
from trt_layermerge.cli.stage import run_stage
from trt_layermerge.cli.verb import Key


@dataclass(frozen=True, kw_only=True)
class ImportanceOptions(StageOptions):
    """Options of ``importance``."""

    method: Annotated[
        Literal["calibrate", "finetune"] | None,
        typer.Option(help="calibrate: seconds a candidate; finetune: as published."),
        Key("importance.method"),
    ] = None


def importance(options: ImportanceOptions) -> None:
    """Scores every candidate on data, or continues to."""
    run_stage("importance", options)
