"""``export``: torch networks to ONNX."""

from __future__ import annotations

from trt_layermerge.cli.options import StageOptions
from trt_layermerge.cli.stage import run_stage


def export(options: StageOptions) -> None:
    """Writes the original and the merged network as ONNX, checked against torch."""
    run_stage("export", options)
