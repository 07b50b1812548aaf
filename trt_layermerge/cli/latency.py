"""``latency``: candidates to the latency table."""

from __future__ import annotations

from trt_layermerge.cli.options import StageOptions
from trt_layermerge.cli.stage import run_stage


def latency(options: StageOptions) -> None:
    """Measures the latency of every candidate here, or continues to."""
    run_stage("latency", options)
