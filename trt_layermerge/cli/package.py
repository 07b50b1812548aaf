"""``package``: what a server or a robot needs of a run, in one folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from trt_layermerge.cli.options import StageOptions
from trt_layermerge.cli.stage import run_stage
from trt_layermerge.cli.verb import Key

_BUNDLE = "Bundle"


@dataclass(frozen=True, kw_only=True)
class PackageOptions(StageOptions):
    """Options of ``package``: here the precision is the bundle's."""

    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            help="What the bundle is for: plain, triton, deepstream or isaac-ros; repeatable.",
            metavar="TARGET",
            rich_help_panel=_BUNDLE,
        ),
        Key("package.targets"),
    ] = None
    bake_preprocess: Annotated[
        bool | None,
        typer.Option(
            help="Normalisation and softmax within the network; DeepStream needs it.",
            show_default=False,
            rich_help_panel=_BUNDLE,
        ),
        Key("package.bake_preprocess"),
    ] = None
    precision: Annotated[
        Literal["fp32", "fp16", "int8"] | None,
        typer.Option(
            help="fp32, fp16 or int8; by default what was measured.",
            metavar="TYPE",
            rich_help_panel=_BUNDLE,
        ),
        Key("package.precision"),
    ] = None


def package(options: PackageOptions) -> None:
    """Bundles engine, ONNX, recipe and checks for a server, a robot or a program."""
    run_stage("package", options)
