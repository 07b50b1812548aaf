"""``verify``: torch, ONNX and engines on ``test``, opened here and only here → ``verify.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trt_layermerge.core.jsonio import Json, damage, read_json, write_json
from trt_layermerge.errors import AccuracyGateError
from trt_layermerge.pipeline.context import Context, data_inputs, images_of
from trt_layermerge.pipeline.models import network_inputs
from trt_layermerge.pipeline.sections import DataSection
from trt_layermerge.pipeline.stage import Stage

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from trt_layermerge.deploy.verify import Subject, Verification

BATCH = 256
UNLABELLED_IMAGES = 64


def _settings(context: Context) -> Json:
    data = context.recipe.data
    return {
        "model": network_inputs(context.recipe.model),
        "test": data_inputs(data.test),
        "seen": seen_before(data),
        "preprocess": data.preprocess.model_dump(mode="json"),
        "verify": context.recipe.verify.model_dump(mode="json"),
        "trust_engine": context.trust_engine,
    }


def _run(context: Context) -> tuple[str, ...]:
    from trt_layermerge.deploy.verify import gate, verify

    images, labels = _images(context)
    answers = {
        "original": _outputs(context.model, images),
        "repaired": _outputs(context.relaxed("repaired.safetensors"), images),
        "merged": _outputs(context.merged, images),
    }
    result = verify(
        images.numpy(),
        labels,
        {"original": answers["original"], "merged": answers["merged"]},
        _subjects(context),
    )
    repaired = None
    if labels is not None:
        repaired = float(np.mean(answers["repaired"].argmax(1) == labels))
    unverified = [*result.unverified, *seen_before(context.recipe.data)]
    failed = None
    try:
        gate(result, context.recipe.verify.max_accuracy_drop)
    except AccuracyGateError as error:
        failed = str(error)
    added = {"repaired_accuracy": repaired, "unverified": unverified, "failed_gate": failed}
    write_json(context.folder / "verify.json", "verify", {**result.to_json(), **added})
    return "verify.json", *_amend_engines(context, result)


def _gate(context: Context) -> None:
    failed = read_json(context.folder / "verify.json", "verify")["failed_gate"]
    if failed is not None:
        raise AccuracyGateError(failed)


def seen_before(data: DataSection) -> list[str]:
    """Returns a sentence for each set that has the very same files as ``test``."""

    def content(source: str | None) -> Json:
        found = data_inputs(source)
        if source is not None and source.startswith(("npz:", "imagefolder:")):
            del found["source"]  # another name for the same files
        return found

    return [
        f"accuracy on unseen images was not measured: test and {name} are the same files"
        for name, source in (("train", data.train), ("val", data.val))
        if data.test is not None and content(source) == content(data.test)
    ]


def _images(context: Context) -> tuple[Tensor, NDArray[np.int64] | None]:
    """Returns the test images with their labels, or random inputs where there are none."""
    import torch

    data = context.data("test")
    if data is not None:
        images, labels = data.batch(torch.arange(len(data)))
        return images, labels.numpy()
    train = context.data("train")
    if train is not None:
        return images_of(train, UNLABELLED_IMAGES), None
    generator = torch.Generator().manual_seed(context.seed)
    shape = (UNLABELLED_IMAGES, *context.recipe.model.input[1:])
    return torch.randn(shape, generator=generator), None


def _outputs(network: nn.Module, images: Tensor) -> NDArray[np.float32]:
    import torch

    with torch.no_grad():
        return torch.cat([network(part) for part in torch.split(images, BATCH)]).numpy()


def _subjects(context: Context) -> list[Subject]:
    """Returns both ONNX models, for ONNX Runtime, and every engine."""
    from trt_layermerge.backends import get_backend
    from trt_layermerge.deploy.verify import engine_subject, onnx_subject

    folder = context.folder
    backend = get_backend("onnxruntime")
    subjects = [
        onnx_subject("original.onnx", "original", (folder / "original.onnx").read_bytes(), backend),
        onnx_subject("model.onnx", "merged", (folder / "model.onnx").read_bytes(), backend),
    ]
    trust = context.trust_engine
    engines = engine_names(context)
    return subjects + [engine_subject(folder / name, trust=trust) for name in engines]


def engine_names(context: Context) -> list[str]:
    """Returns the engines that were built, relative to the run's folder."""
    path = context.folder / "build.json"
    body = read_json(path, "build")
    with damage(path):
        return [str(e["plan"]) for e in body["engines"] if e["plan"] is not None]


def _amend_engines(context: Context, result: Verification) -> tuple[str, ...]:
    """Writes the accuracies into the sidecars; returns the names of those that there are."""
    from trt_layermerge.deploy.sidecar import amend_sidecar, check_engine, sidecar_path

    original, merged = result.original_accuracy, result.merged_accuracy
    if original is None or merged is None:
        return ()
    names = []
    for name in engine_names(context):
        plan = context.folder / name
        if check_engine(plan, trust=context.trust_engine) is None:
            continue
        amend_sidecar(plan, accuracy={"original": original, "merged": merged})
        names.append(str(sidecar_path(plan).relative_to(context.folder.root)))
    return tuple(names)


def _result(context: Context) -> Json:
    return read_json(context.folder / "verify.json", "verify")


READS = (
    "graph.json",
    "plan.json",
    "repaired.safetensors",
    "merged.safetensors",
    "original.onnx",
    "model.onnx",
    "build.json",
)
STAGE = Stage("verify", READS, _settings, _run, _result, _gate)
