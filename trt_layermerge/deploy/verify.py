"""``verify.json``: torch, ONNX and engine on the same images, and what nobody could check."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from trt_layermerge.backends import Backend, Runner
from trt_layermerge.backends.base import Array
from trt_layermerge.backends.tensorrt import load_engine
from trt_layermerge.backends.tensorrt_api import load_api
from trt_layermerge.core.jsonio import Json
from trt_layermerge.deploy.machine import this_machine
from trt_layermerge.deploy.sidecar import mismatch, read_engine
from trt_layermerge.errors import AccuracyGateError, CorruptInputError, DeviceError, UsageError

Network: TypeAlias = Literal["original", "merged"]


@dataclass(frozen=True)
class Subject:
    """Something that was built and should compute what a torch network computes.

    Attributes:
        name: Name of the file.
        network: Which torch network it should equal.
        open: Opens it; a ``DeviceError`` means that it cannot be run here.
        tolerance: Largest difference over the largest output that passes, or None: shown, not
            judged, as lower precisions are judged by accuracy.
    """

    name: str
    network: Network
    open: Callable[[], Runner]
    tolerance: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One subject against its torch network.

    Attributes:
        name: Name of the file.
        network: Which torch network it was compared with.
        reason: Why it could not be run, or None; the figures are then None.
        max_abs: Largest difference; infinite if an output is not finite.
        max_rel: Largest difference over the largest magnitude of the reference.
        agreement: Share of images with the same top-1 class.
        accuracy: Share of right classes, or None without labels.
        tolerance: What ``max_rel`` may be, or None.
    """

    name: str
    network: Network
    reason: str | None = None
    max_abs: float | None = None
    max_rel: float | None = None
    agreement: float | None = None
    accuracy: float | None = None
    tolerance: float | None = None

    def to_json(self) -> Json:
        """Returns a JSON-ready mapping; infinity becomes None, with ``finite`` false."""
        body = {name: getattr(self, name) for name in self.__slots__}
        body["finite"] = None if self.max_abs is None else math.isfinite(self.max_abs)
        for name in ("max_abs", "max_rel"):
            if not body["finite"]:
                body[name] = None
        return body


@dataclass(frozen=True)
class Verification:
    """Every comparison of a run.

    Attributes:
        images: Number of images.
        original_accuracy: Accuracy of the original torch network, or None without labels.
        merged_accuracy: Accuracy of the merged torch network, or None without labels.
        agreement: Share of images that both torch networks put into the same class.
        comparisons: One for each subject.
        unverified: What was not checked, one sentence each.
    """

    images: int
    original_accuracy: float | None
    merged_accuracy: float | None
    agreement: float
    comparisons: tuple[Comparison, ...]
    unverified: tuple[str, ...]

    @property
    def accuracy_drop(self) -> float | None:
        """Accuracy of the original less the worst of anything merged, or None without labels."""
        if self.original_accuracy is None or self.merged_accuracy is None:
            return None
        merged = [c.accuracy for c in self.comparisons if c.network == "merged"]
        return self.original_accuracy - min(
            [self.merged_accuracy, *(a for a in merged if a is not None)]
        )

    def to_json(self) -> Json:
        """Returns the body of ``verify.json``."""
        return {
            "images": self.images,
            "accuracy": {
                "original": self.original_accuracy,
                "merged": self.merged_accuracy,
                "drop": self.accuracy_drop,
            },
            "agreement": self.agreement,
            "comparisons": [c.to_json() for c in self.comparisons],
            "unverified": list(self.unverified),
        }


def onnx_subject(
    name: str, network: Network, model: bytes, backend: Backend, tolerance: float | None = 1e-3
) -> Subject:
    """Returns an ONNX model to run on a backend; float32 in another order passes 1e-3."""
    return Subject(name, network, lambda: backend.open(model), tolerance)


def engine_subject(plan: Path, *, trust: bool = False) -> Subject:
    """Returns an engine of the merged network, to run on the GPU at hand.

    Opening it raises ``DeviceError`` where it does not fit this machine, and
    ``UntrustedInputError`` where its sidecar does not match, unless ``trust`` is set.
    """

    def open_engine() -> Runner:
        data, sidecar = read_engine(plan, trust=trust)
        api = load_api(sidecar.library if sidecar else None)
        if sidecar is not None:
            why = mismatch(sidecar, api.flavor, api.version, this_machine())
            if why is not None:
                raise DeviceError(why)
        return load_engine(data, api)

    return Subject(plan.name, "merged", open_engine)


def verify(
    images: Array,
    labels: Array | None,
    reference: Mapping[Network, Array],
    subjects: Sequence[Subject],
) -> Verification:
    """Returns how far everything that was built is from torch; raises no gate (``gate`` does).

    Args:
        images: Network inputs ``(N, C, H, W)``, float32.
        labels: Right classes ``(N,)``, or None.
        reference: Outputs ``(N, classes)`` of both torch networks on these images.
        subjects: What to compare; one that cannot be run here is listed as unverified.

    Raises:
        UsageError: If there are no images, or their number differs from outputs or labels.
        CorruptInputError: If a label is beyond the classes, which would count as a wrong answer.
        UntrustedInputError: If an engine is not to be trusted.
    """
    counts = {len(images), *(len(outputs) for outputs in reference.values())}
    counts |= set() if labels is None else {len(labels)}
    if counts != {len(images)} or len(images) == 0:
        raise UsageError(
            f"images, labels and outputs come in the numbers {sorted(counts)}; "
            "give as many of each, and at least one"
        )
    classes = reference["original"].shape[1]
    if labels is not None and labels.max() >= classes:
        raise CorruptInputError(
            f"an image has the label {labels.max()}, but the network tells {classes} classes "
            "apart, counted from 0; number the labels as the network does"
        )
    comparisons = tuple(_compare(s, images, labels, reference[s.network]) for s in subjects)
    unverified = [f"{c.name} was not run: {c.reason}" for c in comparisons if c.reason]
    if labels is None:
        unverified.append("accuracy was not measured: there are no labels")
    original, merged = reference["original"], reference["merged"]
    return Verification(
        images=len(images),
        original_accuracy=_accuracy(original, labels),
        merged_accuracy=_accuracy(merged, labels),
        agreement=_share(original.argmax(1) == merged.argmax(1)),
        comparisons=comparisons,
        unverified=tuple(unverified),
    )


def gate(result: Verification, max_accuracy_drop: float | None) -> None:
    """Passes silently, or says which limit is exceeded.

    Raises:
        AccuracyGateError: If a subject is outside its tolerance or not finite, or accuracy drops
            by more than the fraction ``max_accuracy_drop``; also if it was never measured.
    """
    for c in result.comparisons:
        if c.max_abs is not None and c.max_rel is not None:
            allowed = math.inf if c.tolerance is None else c.tolerance
            if not (math.isfinite(c.max_abs) and c.max_rel <= allowed):
                raise AccuracyGateError(
                    f"{c.name} differs from the {c.network} torch network by {c.max_rel:.2e} of "
                    f"its largest output, {allowed:.0e} is allowed; export it again, and see "
                    "verify.json for the figures"
                )
    if max_accuracy_drop is None:
        return
    drop = result.accuracy_drop
    if drop is None:
        raise AccuracyGateError(
            "accuracy may drop by a limited amount, but was not measured, because there are no "
            "labels; name test images (data.test) or remove the gate (verify.max_accuracy_drop)"
        )
    if drop > max_accuracy_drop:
        raise AccuracyGateError(
            f"accuracy dropped by {drop:.2%} on {result.images} images, {max_accuracy_drop:.2%} "
            "is allowed; choose a smaller speed-up (--speedup) or a longer fine-tuning"
        )


def infer_all(runner: Runner, images: Array) -> Array:
    """Returns the first output for all images, run in batches of the network's own size."""
    (name, (batch, *_)), *_ = runner.input_shapes.items()
    output = runner.output_names[0]
    rows = []
    for start in range(0, len(images), batch):
        chunk = images[start : start + batch]
        filled = np.concatenate([chunk, chunk[-1:].repeat(batch - len(chunk), axis=0)])
        rows.append(runner.infer({name: filled})[output][: len(chunk)])
    return np.concatenate(rows)


def _compare(subject: Subject, images: Array, labels: Array | None, reference: Array) -> Comparison:
    try:
        with subject.open() as runner:
            outputs = infer_all(runner, images).astype(np.float64)
    except DeviceError as error:
        return Comparison(subject.name, subject.network, str(error))
    scale = float(np.abs(reference).max())
    finite = bool(np.isfinite(outputs).all())
    max_abs = float(np.abs(outputs - reference).max()) if finite else math.inf
    return Comparison(
        name=subject.name,
        network=subject.network,
        max_abs=max_abs,
        max_rel=max_abs / scale if scale else max_abs,
        agreement=_share(outputs.argmax(1) == reference.argmax(1)),
        accuracy=_accuracy(outputs, labels),
        tolerance=subject.tolerance,
    )


def _accuracy(outputs: Array, labels: Array | None) -> float | None:
    return None if labels is None else _share(outputs.argmax(1) == labels)


def _share(hits: Array) -> float:
    return float(np.mean(hits))
