"""``build``: ONNX to an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from trt_layermerge.cli.options import PRECISIONS, BackendName, StageOptions
from trt_layermerge.cli.stage import run_stage
from trt_layermerge.cli.verb import Key
from trt_layermerge.errors import DeviceError, UnsupportedModelError


@dataclass(frozen=True, kw_only=True)
class BuildOptions(StageOptions):
    """Options of ``build``: here the backend and the precision are the engine's."""

    backend: Annotated[
        BackendName | None,
        typer.Option(help="tensorrt or tensorrt_rtx; by default the one that is installed."),
        Key("build.engine"),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(help="Precision of the engine.", metavar=PRECISIONS),
        Key("build.precisions", lambda precision: [precision]),
    ] = None


def build(options: BuildOptions) -> None:
    """Builds the engine with its sidecar."""
    engines = run_stage("build", options)["engines"]
    # A whole run goes on without an engine; who asks for one must hear that there is none.
    if engines and all(engine["plan"] is None for engine in engines):
        unsupported = engines[0].get("exit_code") == UnsupportedModelError.exit_code
        raise (UnsupportedModelError if unsupported else DeviceError)(engines[0]["error"])
