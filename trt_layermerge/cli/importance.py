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
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that score; more than 1 need Ray.", min=1),
        Key("scale.workers"),
    ] = None
    ray: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster: auto, HOST:PORT or ray://HOST:PORT."),
        Key("scale.ray"),
    ] = None


def importance(options: ImportanceOptions) -> None:
    """Scores every candidate on data, or continues to."""
    run_stage("importance", options)
