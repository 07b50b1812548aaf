"""``merge``: the relaxed network to the merged one."""

from __future__ import annotations

from trt_layermerge.cli.options import StageOptions
from trt_layermerge.cli.stage import run_stage


def merge(options: StageOptions) -> None:
    """Collapses the relaxed network into few convolutions and certifies it."""
    run_stage("merge", options)
