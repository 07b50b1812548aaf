"""``calibrate``: scales and a Q/DQ model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from trt_layermerge.cli.options import StageOptions
from trt_layermerge.cli.stage import report, request_of
from trt_layermerge.cli.verb import Key

ALWAYS = {"build.precisions+": "int8"}


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(StageOptions):
    """Options of ``calibrate``."""

    preset: Annotated[
        Path | None,
        typer.Option(help="How to calibrate: a YAML file as in calib/presets."),
        Key("calibrate.preset", str),
    ] = None
    method: Annotated[
        Literal["minmax", "entropy", "percentile"] | None,
        typer.Option(
            help="Overrides the preset's way to find scales: minmax, entropy or percentile.",
            metavar="METHOD",
        ),
        Key("calibrate.options.method"),
    ] = None
    images: Annotated[
        int | None,
        typer.Option(help="Overrides the preset's number of training images.", min=1),
        Key("calibrate.options.images"),
    ] = None
    qat_epochs: Annotated[
        int | None,
        typer.Option(help="Epochs of training the merged network with int8's rounding.", min=0),
        Key("calibrate.qat_epochs"),
    ] = None


def calibrate(options: CalibrateOptions) -> None:
    """Quantises both networks to int8 within an accuracy gate; the run builds int8 from then on."""
    request = request_of(options)
    asked = replace(request, overrides={**request.overrides, **ALWAYS})
    from trt_layermerge.pipeline import api

    report(options, lambda reporter: api.run_stage("calibrate", asked, reporter), "calibrate")
