"""``merge``: the trained relaxed network → ``merged.safetensors`` and ``certificate.json``."""

from __future__ import annotations

from trt_layermerge.core.jsonio import Json
from trt_layermerge.pipeline.files import read_body
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.session.images import images_of
from trt_layermerge.session.session import CERTIFIED_IMAGES


def _settings(run: Run) -> Json:
    return {"model": run.recipe.model.identity()}


def _run(run: Run) -> tuple[str, ...]:
    data = run.data("train")
    run.session.merge(None if data is None else images_of(data, CERTIFIED_IMAGES))
    return "merged.safetensors", "certificate.json"


def _result(run: Run) -> Json:
    return read_body(run.folder / "certificate.json", "certificate")


STAGE = Stage("merge", ("graph.json", "plan.json", "relaxed.safetensors"), _settings, _run, _result)
