"""``verify``: torch, ONNX and engines on ``test``, opened here and only here → ``verify.json``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trt_layermerge.core.jsonio import Json, read_json, write_json
from trt_layermerge.deploy.sidecar import STEMS
from trt_layermerge.errors import AccuracyGateError
from trt_layermerge.pipeline.built import built_engines, engine_hashes, wanted_precisions
from trt_layermerge.pipeline.context import Context, data_inputs, images_of
from trt_layermerge.pipeline.data_files import same_files
from trt_layermerge.pipeline.deployed import CALIBRATION, ENGINE_FALLBACK
from trt_layermerge.pipeline.sections import DataSection
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.pipeline.verifying import leave_models, onnx_name, subjects

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trt_layermerge.backends.base import Array
    from trt_layermerge.deploy.verify import Answer, Batch, Verification

BATCH = 256
UNLABELLED_IMAGES = 64


def _settings(context: Context) -> Json:
    data = context.recipe.data
    return {
        "model": context.recipe.model.identity(),
        "test": data_inputs(data.test),
        "seen": seen_before(data),
        "preprocess": data.preprocess.model_dump(mode="json"),
        "max_accuracy_drop": context.recipe.verify.max_accuracy_drop,
        "precisions": wanted_precisions(context),
        "engines": engine_hashes(context),
        "trust_engine": context.trust_engine,
    }


def _run(context: Context) -> tuple[str, ...]:
    from trt_layermerge.deploy.verify import gate, verify

    networks = {
        "original": _answer(context.model),
        "repaired": _answer(context.relaxed("repaired.safetensors")),
        "merged": _answer(context.merged),
    }
    result = verify(_batches(context), networks, subjects(context))
    unverified = [*result.unverified, *seen_before(context.recipe.data)]
    failed = None
    try:
        gate(result, context.recipe.verify.max_accuracy_drop)
    except AccuracyGateError as error:
        failed = str(error)
        wrong = {c.name.partition(" ")[0] for c in result.comparisons if not c.ok}
        leave_models(context, wrong)
    added = {
        "repaired_accuracy": result.accuracies["repaired"],
        "unverified": unverified,
        "failed_gate": failed,
    }
    write_json(context.folder / "verify.json", "verify", {**result.to_json(), **added})
    return "verify.json", *_amend_engines(context, result)


def _gate(context: Context) -> None:
    failed = read_json(context.folder / "verify.json", "verify")["failed_gate"]
    if failed is not None:
        raise AccuracyGateError(failed)


def seen_before(data: DataSection) -> list[str]:
    """Returns a sentence for each set that has the very same files as ``test``."""
    return [
        f"accuracy on unseen images was not measured: test and {name} are the same files"
        for name, source in (("train", data.train), ("val", data.val))
        if same_files(source, data.test)
    ]


def _batches(context: Context) -> Iterator[Batch]:
    """Yields the test images with their labels, or random inputs where there are none."""
    import torch

    data = context.data("test")
    if data is not None:
        for start in range(0, len(data), BATCH):
            context.reporter.progress("verifying", start, len(data))
            images, labels = data.batch(torch.arange(start, min(start + BATCH, len(data))))
            yield images.numpy(), None if labels is None else labels.numpy()
        context.reporter.progress("verifying", len(data), len(data))
        return
    train = context.data("train")
    if train is not None:
        yield images_of(train, UNLABELLED_IMAGES).numpy(), None
        return
    generator = torch.Generator().manual_seed(context.seed)
    shape = (UNLABELLED_IMAGES, *context.recipe.model.input[1:])
    yield torch.randn(shape, generator=generator).numpy(), None


def _answer(network: nn.Module) -> Answer:
    import torch

    def answer(images: Array) -> Array:
        with torch.no_grad():
            outputs: Tensor = network(torch.from_numpy(images))
        return outputs.numpy()

    return answer


def _amend_engines(context: Context, result: Verification) -> tuple[str, ...]:
    """Writes the accuracies into the sidecars; returns the names of those that there are.

    ``original`` and ``merged`` are torch's, ``onnx`` is that of the graph that the engine was built
    from, in ONNX Runtime, and ``engine`` its own where it could be run.
    """
    from trt_layermerge.deploy.sidecar import amend_sidecar, check_engine, sidecar_path

    original, merged = result.accuracies["original"], result.accuracies["merged"]
    if original is None or merged is None:
        return ()
    measured = {c.name: c.accuracy for c in result.comparisons if c.accuracy is not None}
    names = []
    for built in built_engines(context):
        if built.plan is None:
            continue
        plan = context.folder / built.plan
        if check_engine(plan, trust=context.trust_engine) is None:
            continue
        graph = onnx_name(STEMS[built.network], built.precision, ENGINE_FALLBACK)
        own = {"onnx": measured.get(graph), "engine": measured.get(plan.name)}
        told = {key: share for key, share in own.items() if share is not None}
        amend_sidecar(plan, accuracy={"original": original, "merged": merged, **told})
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
    CALIBRATION,
)
STAGE = Stage("verify", READS, _settings, _run, _result, _gate)
