"""Torch, ONNX models at every precision and every engine, compared on the same images."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trt_layermerge.backends import Runner, get_backend
from trt_layermerge.backends.base import Array
from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.device import Precision
from trt_layermerge.core.inputs import mapped
from trt_layermerge.core.jsonio import Json, write_bytes, write_json
from trt_layermerge.core.outputs import Kinds
from trt_layermerge.data import LabelledData, pairs
from trt_layermerge.data.loader import Images
from trt_layermerge.deploy.comparison import Subject
from trt_layermerge.deploy.engines import open_engine
from trt_layermerge.deploy.sidecar import (
    STEMS,
    Network,
    Sidecar,
    amend_sidecar,
    check_engine,
    sidecar_path,
)
from trt_layermerge.deploy.verify import (
    Answer,
    Batch,
    Verification,
    gate,
    verify,
)
from trt_layermerge.errors import AccuracyGateError, DeviceError, UnsupportedModelError
from trt_layermerge.export.fp16 import rounded
from trt_layermerge.finetune.device import lent
from trt_layermerge.finetune.evaluate import outputs_of
from trt_layermerge.session.built import Built, built_engines, identity_of, wanted_precisions
from trt_layermerge.session.deployed import (
    ENGINE_FALLBACK,
    RUNTIME_FALLBACK,
    deployed_model,
)
from trt_layermerge.session.images import in_memory, plain
from trt_layermerge.session.judging import TaskMetric
from trt_layermerge.session.settings import Settings
from trt_layermerge.session.showing import Showing

TOLERANCE: dict[Precision, float | None] = {"fp32": 1e-3, "fp16": 5e-2, "int8": None}
"""Largest difference over the largest output. Half precision has 11 bits, and a network adds their
roundings up: 5e-2 finds what is broken. Whether fp16 and int8 are good enough, accuracy decides."""


BATCH = 256
UNLABELLED_IMAGES = 64
JUDGED = 50
"""Images from which on it is told that a network guesses."""


def verify_networks(
    folder: Path,
    networks: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    settings: Settings,
    kinds: Kinds,
    *,
    metric: TaskMetric | None,
    max_accuracy_drop: float | None,
    max_metric_drop: float | None,
    min_agreement: float | None,
    shown: Showing,
    unseen: Sequence[str],
    notes: Sequence[str],
    trust: bool,
) -> tuple[Json, tuple[str, ...]]:
    """Writes ``verify.json``; returns it, and the names of the files that were written.

    Args:
        folder: Where exported networks and engines are.
        networks: The torch networks ``original``, ``repaired`` and ``merged``, in eval mode.
        batches: Images ``(n, C, H, W)`` with labels ``(n,)`` or None (``image_batches``).
        settings: Which precisions and which batch.
        kinds: What the outputs are, by name (``core.outputs``).
        metric: The task's own figure, or None.
        max_accuracy_drop: Largest loss of accuracy, as a fraction; None for no gate.
        max_metric_drop: The same of the metric.
        min_agreement: Smallest share of answers that are the original's; None for no gate.
        shown: What the images are, for words and pictures of them.
        unseen: Reasons why the images are none that nothing else has seen.
        notes: What was taken for lack of better, a sentence each.
        trust: Whether engines without a matching sidecar are loaded.

    Raises:
        UsageError: If there are no images.
        CorruptInputError: If a label is beyond the classes.
        UntrustedInputError: If an engine is not to be trusted.
    """
    answers = {name: _answer(network, kinds) for name, network in networks.items()}
    built, judge = subjects(folder, settings, trust=trust), None if metric is None else metric.begin
    with lent(settings.device, *networks.values()):
        result = verify(batches, answers, built, kinds, judge)
    failed = None
    try:
        gate(result, max_accuracy_drop, max_metric_drop, min_agreement)
    except AccuracyGateError as error:
        failed = str(error)
        wrong = {c.name.partition(" ")[0] for c in result.comparisons if not c.ok}
        leave_models(folder, wrong, settings.measure.batch)
    body = {
        **result.to_json(),
        "outputs": dict(kinds),
        "on": shown.what,
        "min_agreement": min_agreement,
        "classes": [{**row, "class": shown.name(row["class"])} for row in result.classes],
        "changed": shown.rows(result.changed, folder),
        "repaired_accuracy": result.accuracies["repaired"],
        "metric": metric and {"name": metric.name, **result.metrics, "drop": result.metric_drop},
        "unverified": [*result.unverified, *unseen, *_guessed(result, len(shown.class_names))],
        "notes": [*notes],
        "failed_gate": failed,
    }
    write_json(folder / "verify.json", "verify", body)
    pictures = [row["picture"] for row in body["changed"] if row["picture"]]
    return body, ("verify.json", *pictures, *_amend_engines(folder, result, trust))


def image_batches(
    test: Images | None, train: Images | None, drawn: Any, tell: Callbacks
) -> Iterator[Batch]:
    """Yields the test images with their labels, or others without where there are none.

    Args:
        test: Images for the final figures, or None.
        train: Training images, of which some serve without labels where there are no others.
        drawn: Random inputs, where there are no images at all.
        tell: What is called meanwhile.
    """
    if test is not None:
        done, total = 0, len(test) if isinstance(test, LabelledData) else 0
        for images, labels in pairs(test, BATCH):
            tell.progress("verifying", done, max(total, done + len(images)))
            yield mapped(_array, images), None if labels is None else labels.cpu().numpy()
            done += len(images)
        tell.progress("verifying", done, done)
        return
    if train is not None:
        few = in_memory(train, UNLABELLED_IMAGES)
        # Folders are sorted: from all over, or they would be of the first class alone.
        places = torch.linspace(0, len(few) - 1, min(UNLABELLED_IMAGES, len(few))).long()
        drawn = few.batch(places)[0]
    yield mapped(_array, drawn), None


def _guessed(result: Verification, classes: int) -> Iterator[str]:
    """Yields what must be said where the original answers no better than by guessing."""
    share = result.accuracies["original"]
    if share is not None and result.images >= JUDGED and classes and share <= 1.5 / classes:
        yield (
            f"the original itself is right on {share:.1%} of the images only, no better than "
            "guessing: the classes are in another order than it was trained with, or "
            "data.preprocess or its weights are not its own, so accuracies say nothing"
        )


def _array(tensor: Tensor) -> Array:
    found: Array = plain(tensor).numpy()
    return found


def _answer(network: nn.Module, kinds: Kinds) -> Answer:
    def answer(images: Any) -> dict[str, Array]:
        found = outputs_of(network, mapped(torch.from_numpy, images))
        return dict(zip(kinds, (value.numpy() for value in found.values()), strict=True))

    return answer


def _amend_engines(folder: Path, result: Verification, trust: bool) -> tuple[str, ...]:
    """Writes the accuracies into the sidecars; returns the names of those that there are.

    ``original`` and ``merged`` are torch's, ``onnx`` is that of the graph that the engine was built
    from, in ONNX Runtime, and ``engine`` its own where it could be run.
    """
    original, merged = result.accuracies["original"], result.accuracies["merged"]
    if original is None or merged is None:
        return ()
    measured = {c.name: c.accuracy for c in result.comparisons if c.accuracy is not None}
    names = []
    for built in built_engines(folder):
        if built.plan is None:
            continue
        plan = folder / built.plan
        if check_engine(plan, trust=trust) is None:
            continue
        graph = onnx_name(STEMS[built.network], built.precision, ENGINE_FALLBACK)
        own = {"onnx": measured.get(graph), "engine": measured.get(plan.name)}
        told = {key: share for key, share in own.items() if share is not None}
        amend_sidecar(plan, accuracy={"original": original, "merged": merged, **told})
        names.append(str(sidecar_path(plan).relative_to(folder)))
    return tuple(names)


def subjects(folder: Path, settings: Settings, *, trust: bool) -> list[Subject]:
    """Returns both networks at every precision, for ONNX Runtime, and every engine.

    Args:
        folder: Where networks and engines are.
        settings: Which precisions and which batch.
        trust: Whether engines without a matching sidecar are loaded.
    """
    batch = settings.measure.batch
    found = [
        _onnx(folder, network, precision, fallback, batch)
        for precision in wanted_precisions(settings)
        for fallback in fallbacks(precision)
        for network in STEMS
    ]
    engines = (_engines(folder, built, trust) for built in built_engines(folder) if built.plan)
    return [*found, *chain.from_iterable(engines)]


def _onnx(
    folder: Path, network: Network, precision: Precision, fallback: Precision, batch: int
) -> Subject:
    """Returns an ONNX model for ONNX Runtime; one that cannot be typed so is not run, like engines.

    Raises:
        UnsupportedModelError: If the fp32 master itself cannot be used.
    """
    name, tolerance = onnx_name(STEMS[network], precision, fallback), TOLERANCE[precision]
    try:
        model = rounded(deployed_model(folder, network, precision, fallback, batch=batch))
    except UnsupportedModelError as error:
        if precision == "fp32":
            raise
        return Subject(name, network, partial(_refuse, str(error)), tolerance)
    return Subject(name, network, partial(get_backend("onnxruntime").open, model), tolerance)


def _refuse(reason: str) -> Runner:
    raise DeviceError(reason)


def fallbacks(precision: Precision) -> tuple[Precision, ...]:
    """Returns the float types that int8 comes with: ONNX Runtime's and TensorRT's; else one."""
    both = (RUNTIME_FALLBACK, ENGINE_FALLBACK)
    return both if precision == "int8" else both[:1]


def onnx_name(stem: str, precision: Precision, fallback: Precision) -> str:
    """Returns the name of an ONNX model, such as ``model.int8-fp16.onnx``.

    fp32 goes without saying; only int8 has a fallback.

    Args:
        stem: ``original`` or ``model``.
        precision: What it is typed for.
        fallback: At int8, the float type of what is not quantised.
    """
    typed = "" if precision == "fp32" else f".{precision}"
    rest = f"-{fallback}" if precision == "int8" and fallback != "fp32" else ""
    return f"{stem}{typed}{rest}.onnx"


def _engines(folder: Path, built: Built, trust: bool) -> list[Subject]:
    """Returns an engine at its usual batch, and at the ends of what its profile takes."""
    plan = folder / str(built.plan)
    sidecar = check_engine(plan, trust=trust, wanted=identity_of(folder, built))
    tolerance = TOLERANCE[built.precision]
    typed = f"{folder}/{_debug_name(built)}"
    advice = f"find the layer: {bisect_command(typed, tolerance, sidecar)}"
    return [
        Subject(
            plan.name if batch is None else f"{plan.name} at batch {batch}",
            built.network,
            partial(open_engine, plan, trust=trust, batch=batch),
            tolerance,
            advice,
        )
        for batch in (None, *other_batches(sidecar))
    ]


def other_batches(sidecar: Sidecar | None) -> tuple[int, ...]:
    """Returns the smallest and the largest batch of an engine that takes several."""
    if sidecar is None or not sidecar.profile:
        return ()
    smallest, usual, largest = (shape[0] for shape in next(iter(sidecar.profile.values())))
    return tuple(batch for batch in sorted({smallest, largest}) if batch != usual)


def bisect_command(model: str, tolerance: float | None, sidecar: Sidecar | None) -> str:
    """Returns the Polygraphy command that reduces a model to the nodes an engine gets wrong.

    Args:
        model: The ONNX model that the engine was built from, at the engine's precision.
        tolerance: Largest difference that passes, absolute and relative.
        sidecar: What is known of the engine; None for a trusted stranger.
    """
    library = sidecar.library if sidecar else "tensorrt"
    words = str(sidecar.settings.get("typing", "strong") if sidecar else "strong").split()
    weak = "".join(f" --{flag.lower()}" for flag in words[1:])
    typing = weak if words[0] == "weak" else " --strongly-typed"
    allowed = tolerance or 0.1
    prefix = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if library == "tensorrt_rtx" else ""
    return (
        f"{prefix}polygraphy debug reduce {shlex.quote(model)} -o reduced.onnx --mode bisect "
        f"--check polygraphy run polygraphy_debug.onnx --onnxrt --trt{typing} --atol {allowed:g} "
        f"--rtol {allowed:g}"
    )


def leave_models(folder: Path, wrong: set[str], batch: int) -> None:
    """Writes the ONNX models that some engines were built from, for the commands about them.

    Args:
        folder: Where the engines are.
        wrong: File names of the engines.
        batch: What the models are fixed to.
    """
    for built in built_engines(folder):
        if built.plan is None or built.plan.rpartition("/")[2] not in wrong:
            continue
        model = deployed_model(folder, built.network, built.precision, ENGINE_FALLBACK, batch=batch)
        write_bytes(folder / _debug_name(built), model)


def _debug_name(built: Built) -> str:
    stem = str(built.plan).rpartition("/")[2].removesuffix(".plan")
    return f"debug/{stem}.onnx"
