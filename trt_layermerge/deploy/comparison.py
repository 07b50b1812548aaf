"""How far a built network is from the torch network it should equal, counted batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trt_layermerge.backends import Runner
from trt_layermerge.backends.base import Array
from trt_layermerge.core.agreement import agreements
from trt_layermerge.core.jsonio import Json
from trt_layermerge.deploy.sidecar import Network
from trt_layermerge.errors import DeviceError

EXPORT_AGAIN = "export it again"


@dataclass(frozen=True)
class Subject:
    """Something that was built and should compute what a torch network computes.

    Attributes:
        name: Name of the file, and what else tells it from others.
        network: Which torch network it should equal.
        open: Opens it; a ``DeviceError`` means that it cannot be run here.
        tolerance: Largest difference over the largest output that passes, or None: shown, not
            judged, as lower precisions are judged by accuracy.
        advice: What to type where it is outside its tolerance.
    """

    name: str
    network: Network
    open: Callable[[], Runner]
    tolerance: float | None = None
    advice: str = EXPORT_AGAIN


@dataclass(frozen=True, slots=True)
class Comparison:
    """One subject against its torch network.

    Attributes:
        name: Name of the file.
        network: Which torch network it was compared with.
        reason: Why it could not be run, or None; the figures are then None.
        max_abs: Largest difference; infinite if an output is not finite.
        max_rel: Largest difference over the largest magnitude of the reference.
        agreement: Share of images with the same answer (``core.agreement``).
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

    @property
    def ok(self) -> bool:
        """Whether it is finite and within its tolerance; also where it was not run."""
        if self.max_abs is None or self.max_rel is None:
            return True
        allowed = math.inf if self.tolerance is None else self.tolerance
        return math.isfinite(self.max_abs) and self.max_rel <= allowed

    def to_json(self) -> Json:
        """Returns a JSON-ready mapping; infinity becomes None, with ``finite`` false."""
        body = {name: getattr(self, name) for name in self.__slots__}
        body["finite"] = None if self.max_abs is None else math.isfinite(self.max_abs)
        for name in ("max_abs", "max_rel"):
            if not body["finite"]:
                body[name] = None
        return body


class Trial:
    """A subject while it is compared: opened once, shown one batch after the other, closed."""

    def __init__(self, subject: Subject) -> None:
        """Opens the subject; one that cannot be run is remembered with the reason.

        Raises:
            UntrustedInputError: If it is an engine that is not to be trusted.
        """
        self.subject = subject
        self._runner: Runner | None = None
        self._reason: str | None = None
        self._max_abs = self._scale = 0.0
        self._agreeing: list[Array] = []
        self._right: list[Array] = []
        try:
            self._runner = subject.open()
        except DeviceError as error:
            self._reason = str(error)

    def add(self, images: Array, labels: Array | None, reference: Array) -> None:
        """Runs a batch ``(n, C, H, W)`` and compares it with ``reference`` ``(n, classes)``.

        Args:
            images: Inputs ``(n, C, H, W)``, float32.
            labels: The right classes ``(n,)``, or None.
            reference: What the torch network answers, ``(n, classes)``.
        """
        if self._runner is None:
            return
        try:
            outputs = infer_all(self._runner, images).astype(np.float64)
        except DeviceError as error:
            self._reason = str(error)
            self.close()
            return
        finite = bool(np.isfinite(outputs).all())
        largest = float(np.abs(outputs - reference).max()) if finite else math.inf
        self._max_abs = max(self._max_abs, largest)
        self._scale = max(self._scale, float(np.abs(reference).max()))
        self._agreeing.append(agreements(reference, outputs))
        if labels is not None:
            self._right.append(outputs.argmax(1) == labels)

    def result(self) -> Comparison:
        """Returns what was found on all batches so far."""
        subject = self.subject
        if self._reason is not None:
            return Comparison(subject.name, subject.network, self._reason)
        return Comparison(
            name=subject.name,
            network=subject.network,
            max_abs=self._max_abs,
            max_rel=self._max_abs / self._scale if self._scale else self._max_abs,
            agreement=share(self._agreeing),
            accuracy=share(self._right),
            tolerance=subject.tolerance,
        )

    def close(self) -> None:
        """Frees the subject; harmless when called twice."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None


def share(hits: Sequence[Array]) -> float | None:
    """Returns the mean of the hits, truth values or shares, of all batches, or None."""
    every = np.concatenate([np.empty(0), *hits])
    return float(every.mean()) if len(every) else None


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
