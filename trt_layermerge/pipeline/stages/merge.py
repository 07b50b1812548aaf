"""``merge``: the trained relaxed network → ``merged.safetensors`` and ``certificate.json``."""

from __future__ import annotations

from trt_layermerge.core.jsonio import Json, read_json, write_json
from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.pipeline.context import Context, images_of
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.pipeline.stages.finetune import save_weights

IMAGES = 8


def _settings(context: Context) -> Json:
    return {"model": context.recipe.model.identity()}


def _run(context: Context) -> tuple[str, ...]:
    import torch

    from trt_layermerge.merge import certify, collapse

    relaxed = context.relaxed("relaxed.safetensors")
    merged = collapse(relaxed)
    data = context.data("train")
    if data is None:
        generator = torch.Generator().manual_seed(context.seed)
        images = torch.randn(IMAGES, *context.recipe.model.input[1:], generator=generator)
    else:
        images = images_of(data, IMAGES)
    certificate = certify(relaxed, merged, images)
    write_json(context.folder / "certificate.json", "certificate", certificate.to_json())
    if not certificate.ok:
        raise UnsupportedModelError(
            "the merged network does not compute what the relaxed one does: relative error "
            f"{certificate.max_rel_error:.1e}; see certificate.json for the block, and please "
            "report it with the network's name"
        )
    save_weights(merged, context, "merged.safetensors")
    return "merged.safetensors", "certificate.json"


def _result(context: Context) -> Json:
    return read_json(context.folder / "certificate.json", "certificate")


STAGE = Stage("merge", ("graph.json", "plan.json", "relaxed.safetensors"), _settings, _run, _result)
