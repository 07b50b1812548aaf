"""``rebuild``: the engine of a bundle, for the machine at hand."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from trt_layermerge.cli.console import print_result
from trt_layermerge.cli.engines import rebuild_view
from trt_layermerge.cli.options import OutputOptions
from trt_layermerge.cli.verb import argument, option


@dataclass(frozen=True, kw_only=True)
class RebuildOptions(OutputOptions):
    """Options of ``rebuild``."""

    bundle: Path = argument("Folder that package wrote.", default=MISSING, show_default=False)
    backend: Literal["tensorrt", "tensorrt_rtx"] | None = option(
        "What builds it; by default what the recipe names, or is installed."
    )
    precision: Literal["fp32", "fp16", "int8"] | None = option(
        "Another precision that the bundle has a network for."
    )


def rebuild(options: RebuildOptions) -> None:
    """Builds the engine of a bundle for this machine, and replaces the old one."""
    from trt_layermerge.pipeline import api

    result = api.rebuild(options.bundle, options.backend, options.precision)
    print_result(result, None if options.as_json else rebuild_view(result))
