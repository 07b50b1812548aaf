"""A finished run → the ``Contents`` of a bundle."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_layermerge.core.device import PRECISIONS, DeviceInfo, Precision
from trt_layermerge.core.inputs import batch, parts_of
from trt_layermerge.core.jsonio import Json, damage, read_json, sha256_bytes, sha256_file
from trt_layermerge.deploy.sidecar import STEMS
from trt_layermerge.errors import (
    CorruptInputError,
    DeviceError,
    UnsupportedModelError,
    UntrustedInputError,
    command,
)
from trt_layermerge.pipeline.recipe import dump_recipe
from trt_layermerge.pipeline.run import Run
from trt_layermerge.session.built import Built, built_engines, identity_of, wanted_precisions
from trt_layermerge.session.deployed import (
    CALIBRATION,
    ENGINE_FALLBACK,
    RUNTIME_FALLBACK,
    deployed_model,
    weights_name,
)
from trt_layermerge.session.verifying import onnx_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trt_layermerge.deploy.bundle.contents import Baked, Contents, Engine, Interface, Samples


def packaged_precision(run: Run) -> Precision:
    """Returns the precision of the network that is bundled."""
    return run.recipe.package.precision or run.recipe.measure.precision


def refuse_bundles(run: Run) -> None:
    """Refuses the wanted bundles of a network that their servers would not know how to run.

    Raises:
        UsageError: If DeepStream would have to give it more than an image.
    """
    from trt_layermerge.deploy.bundle.deepstream import refuse_inputs

    if "deepstream" in run.recipe.package.targets:
        refuse_inputs(run.session.input_names)


def server_name(run: str) -> str:
    """Returns what servers call the network of a run: ASCII letters, digits, ``_``, ``.``, ``-``.

    Where that is not the run's own name, its hash tells runs apart that would be called the same.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", run).lstrip(".-")
    return plain if plain == run else f"{plain or 'model'}-{sha256_bytes(run.encode())[:8]}"


def contents_of(run: Run, baked: Baked) -> Contents:
    """Returns what a bundle of this run holds, with an engine where there is or can be one.

    Raises:
        UsageError: If the run has no network at a precision.
        UntrustedInputError: If the engine does not belong to its sidecar.
        MissingDependencyError: If ONNX Runtime is not installed.
    """
    from trt_layermerge.deploy.bundle.contents import Contents

    recipe, precision = run.recipe, packaged_precision(run)
    wanted = {precision, *wanted_precisions(recipe)}
    models = {}
    for other in (p for p in PRECISIONS if p in wanted):
        try:
            models[other] = _model(run, baked, other, ENGINE_FALLBACK)
        except UnsupportedModelError as error:
            if other in (precision, "fp32"):
                raise
            run.reporter.note(f"the bundle has no {other} network: {error}")
    portable = _model(run, baked, "int8", RUNTIME_FALLBACK) if "int8" in models else None
    face = _interface(run, models["fp32"])
    runnable = models if portable is None else {**models, "int8": portable}
    train = run.data("train")
    contents = Contents(
        name=server_name(run.folder.root.name),
        precision=precision,
        models=models,
        portable=portable,
        engine=None,
        why_no_engine=None,
        interface=face,
        baked=baked,
        preprocess=recipe.data.preprocess.build(),
        labels=(train.class_names or None) if train is not None else None,
        samples=_samples(run, baked, face, runnable),
        recipe=dump_recipe(recipe),
        build={"engine": recipe.build.engine, **recipe.build.options.for_builder()},
        weights_sha256=sha256_file(run.folder / weights_name(run.folder.root, precision)),
        seed=run.seed,
        calibration=(run.folder / CALIBRATION).read_text("utf-8") if "int8" in models else None,
        accuracy=_accuracy(run),
        latency=_latency(run),
    )
    return _with_engine(run, contents)


def _model(run: Run, baked: Baked, precision: Precision, fallback: Precision) -> bytes:
    from trt_layermerge.export.bake import bake

    model = deployed_model(run.folder.root, "merged", precision, fallback)
    if not baked:
        return model
    preprocess = run.recipe.data.preprocess.build() if baked.normalise else None
    return bake(model, preprocess, softmax=baked.softmax)


def _interface(run: Run, model: bytes) -> Interface:
    import onnx

    from trt_layermerge.deploy.bundle.contents import Interface, Port
    from trt_layermerge.export.batch import dynamic_batch

    def port(value: onnx.ValueInfoProto, kind: Any) -> Port:
        tensor = value.type.tensor_type
        number: Any = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        return Port(value.name, tuple(d.dim_value for d in tensor.shape.dim[1:]), kind, number)

    graph = onnx.load_from_string(model).graph
    outputs = zip(graph.output, run.session.outputs.values(), strict=True)
    return Interface(
        inputs=tuple(port(v, "numbers" if i else "image") for i, v in enumerate(graph.input)),
        outputs=tuple(port(value, kind) for value, kind in outputs),
        batch=run.recipe.measure.batch,
        max_batch=run.recipe.build.max_batch if dynamic_batch(model) else None,
    )


def _samples(run: Run, baked: Baked, face: Interface, models: dict[Precision, bytes]) -> Samples:
    """Returns two inputs with what ONNX Runtime makes of them at every precision."""
    from trt_layermerge.backends import get_backend
    from trt_layermerge.deploy.bundle.contents import Samples
    from trt_layermerge.deploy.comparison import infer_all
    from trt_layermerge.export.batch import with_batch
    from trt_layermerge.export.fp16 import rounded

    inputs, source = sample_inputs(run, normalised=not baked.normalise)
    backend = get_backend("onnxruntime")
    outputs = {}
    for precision, model in models.items():
        fixed = with_batch(model, face.batch) if face.max_batch else model
        with backend.open(rounded(fixed)) as runner:
            found = infer_all(runner, batch(inputs))
        outputs[precision] = tuple(found[port.name] for port in face.outputs)
    return Samples(inputs, outputs, source)


def sample_inputs(run: Run, *, normalised: bool) -> tuple[tuple[NDArray[Any], ...], str]:
    """Returns two of every input ``(2, ...)`` and where they are from, normalised or as pixels.

    Images of a data set come normalised; their pixels are worked out again.
    """
    preprocess = run.recipe.data.preprocess.build()
    split = "val" if run.recipe.data.val is not None else "train"
    data = run.data(split)
    if data is None:
        from trt_layermerge.session.images import random_like

        _, channels, height, width = run.recipe.model.input
        rng = np.random.default_rng(run.seed)
        pixels = rng.integers(0, 256, (2, height, width, channels), dtype=np.uint8)
        images, source = preprocess(pixels), f"random pixels, seed {run.seed}"
        _, *more = parts_of(random_like(run.session.example, 2, run.seed))
    else:
        import torch

        images, *more = parts_of(data.batch(torch.tensor([0, len(data) // 2]))[0])
        images, source = images.numpy(), f"images 0 and {len(data) // 2} of {split}"
    others = tuple(part.numpy() for part in more)
    if normalised:
        return (images, *others), source
    mean, std = (np.asarray(v).reshape(-1, 1, 1) for v in (preprocess.mean, preprocess.std))
    raw = np.rint((images * std + mean) / preprocess.scale).clip(0, 255)
    return (raw.astype(np.float32), *others), source


def _accuracy(run: Run) -> dict[str, float]:
    """Returns the accuracies of ``verify.json``: of the original, and of what engines are made of.

    In torch the merged network has another one than at half precision or in int8.
    """
    path = run.folder / "verify.json"
    body = read_json(path, "verify")
    with damage(path):
        measured = {row["name"]: row["accuracy"] for row in body["comparisons"]}
        found = {"original": body["accuracy"]["original"]}
        for precision in PRECISIONS:
            found[precision] = measured.get(onnx_name(STEMS["merged"], precision, ENGINE_FALLBACK))
        return {name: float(value) for name, value in found.items() if value is not None}


def _latency(run: Run) -> dict[str, Json]:
    """Returns the figures of ``bench.json`` in short, by precision."""
    path = run.folder / "bench.json"
    body = read_json(path, "bench")
    with damage(path):
        device = str(DeviceInfo.from_json(body["device"]))
        return {
            str(pair["precision"]): {
                "original_ms": float(pair["original"]["p50_ms"]),
                "merged_ms": float(pair["merged"]["p50_ms"]),
                "speedup": float(pair["speedup"]),
                "device": device,
            }
            for pair in body["precisions"]
        }


def _with_engine(run: Run, contents: Contents) -> Contents:
    """Returns the contents with the run's engine, or with one that is built for the bundle.

    That is an engine of a graph that is baked, or one whose inputs and outputs are plain arrays.
    """
    from trt_layermerge.backends.tensorrt_api import load_api
    from trt_layermerge.deploy.bundle.rebuild import with_engine

    section = run.recipe.build
    if section.engine == "none":
        return replace(contents, why_no_engine="the recipe asks for none (build.engine)")
    built = built_engine(run, contents.precision)
    if built is not None and built.plan is None:
        return replace(contents, why_no_engine=built.error)
    if built is not None and not contents.baked and not section.options.free_io_formats:
        return replace(contents, engine=_read(run, built, contents))
    try:
        api = load_api(None if section.engine == "auto" else section.engine)
        return with_engine(contents, api)
    except DeviceError as error:
        return replace(contents, why_no_engine=str(error))


def built_engine(run: Run, precision: Precision) -> Built | None:
    """Returns what ``build`` made of the merged network at a precision, or None if nothing."""
    for built in built_engines(run.folder.root):
        if (built.network, built.precision) == ("merged", precision):
            return built
    return None


def _read(run: Run, built: Built, contents: Contents) -> Engine:
    from trt_layermerge.deploy.bundle.contents import Engine
    from trt_layermerge.deploy.sidecar import read_engine

    plan, sidecar = read_engine(
        run.folder / str(built.plan), wanted=identity_of(run.folder.root, built)
    )
    if sidecar is None:
        raise UntrustedInputError(f"the engine {built.plan} has no sidecar, and is not bundled")
    if built.onnx_sha256 != sha256_bytes(contents.models[built.precision]):
        raise CorruptInputError(
            f"the engine {built.plan} was built from another network than the run has now; build "
            f"it again: {command('run', run.folder.root, '--from', 'build')}"
        )
    return Engine(plan, sidecar)
