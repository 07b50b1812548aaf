"""``verify``: whether the result may be shipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from trt_layermerge.cli.options import StageOptions
from trt_layermerge.cli.stage import run_stage
from trt_layermerge.cli.verb import Key


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(StageOptions):
    """Options of ``verify``."""

    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(help="Largest loss of accuracy allowed, as a fraction like 0.01."),
        Key("verify.max_accuracy_drop"),
    ] = None
    trust_engine: Annotated[
        bool,
        typer.Option(
            "--trust-engine",
            help="Load engines that do not match their sidecar too; an engine runs code.",
        ),
    ] = False


def verify(options: VerifyOptions) -> None:
    """Compares torch, ONNX and engine: numbers, accuracy, gates."""
    run_stage("verify", options, trust_engine=options.trust_engine)
