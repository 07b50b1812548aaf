"""``report``: the run as one page."""

from __future__ import annotations

from trt_layermerge.cli.options import StageOptions
from trt_layermerge.cli.stage import run_stage


def report(options: StageOptions) -> None:
    """Writes one page that works offline, and its Markdown twin."""
    run_stage("report", options)
