"""``bench``: how fast the result is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from trt_layermerge.cli.options import StageOptions
from trt_layermerge.cli.stage import run_stage
from trt_layermerge.cli.verb import Key


@dataclass(frozen=True, kw_only=True)
class BenchOptions(StageOptions):
    """Options of ``bench``."""

    max_latency_ms: Annotated[
        float | None,
        typer.Option(help="Most that the merged network may take in the median, in ms."),
        Key("verify.max_latency_ms"),
    ] = None
    trust_engine: Annotated[
        bool,
        typer.Option(
            "--trust-engine",
            help="Time engines that do not match their sidecar too; an engine runs code.",
        ),
    ] = False


def bench(options: BenchOptions) -> None:
    """Times the original beside the merged network, at every precision that was built."""
    run_stage("bench", options, trust_engine=options.trust_engine)
