"""``bench``: how fast the result is."""

from __future__ import annotations

from trt_layermerge.cli.options import StageOptions
from trt_layermerge.cli.stage import run_stage


def bench(options: StageOptions) -> None:
    """Times the original beside the merged network."""
    run_stage("bench", options)
