"""How far a built network is from the torch network it should equal, counted batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from trt_layermerge.backends import Runner
from trt_layermerge.backends.base import Array
from trt_layermerge.core.agreement import (
    LEAST_PROBABILITY,
    Tally,
    agreements,
    agreements_of,
    right,
)
from trt_layermerge.core.inputs import chunks, mapped, parts_of
from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.outputs import Kind, Kinds
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
        max_abs: Largest difference of all outputs; infinite if an output is not finite.
        max_rel: Largest difference over the largest magnitude of the output's reference, which of
            ``probabilities`` counts as ``LEAST_PROBABILITY`` at least.
        agreement: Share of images with the same answer (``core.agreement``) in all outputs.
        kept: Share of images with the same answer as the original torch network; None of what
            was built of that one.
        accuracy: Share of right classes, or None without labels.
        metric: What the task's own figure says, or None without one.
        tolerance: What ``max_rel`` may be, or None.
        outputs: ``max_abs``, ``max_rel`` and ``agreement`` of each output by name, where there are
            several. Whole numbers have an agreement alone.
    """

    name: str
    network: Network
    reason: str | None = None
    max_abs: float | None = None
    max_rel: float | None = None
    agreement: float | None = None
    kept: float | None = None
    accuracy: float | None = None
    metric: float | None = None
    tolerance: float | None = None
    outputs: Mapping[str, Json] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether it is finite and within its tolerance; also where it was not run."""
        if self.max_abs is None or self.max_rel is None:
            return True
        allowed = math.inf if self.tolerance is None else self.tolerance
        return math.isfinite(self.max_abs) and self.max_rel <= allowed

    def to_json(self) -> Json:
        """Returns a JSON-ready mapping; infinity becomes None, with ``finite`` false."""
        body = {name: getattr(self, name) for name in self.__slots__ if name != "outputs"}
        body["finite"] = None if self.max_abs is None else math.isfinite(self.max_abs)
        for name in ("max_abs", "max_rel"):
            if not body["finite"]:
                body[name] = None
        return {**body, "outputs": dict(self.outputs)} if self.outputs else body


class Trial:
    """A subject while it is compared: opened once, shown one batch after the other, closed."""

    def __init__(self, subject: Subject, kinds: Kinds, tally: Tally | None = None) -> None:
        """Opens the subject; one that cannot be run is remembered with the reason.

        Args:
            subject: What is compared.
            kinds: What its outputs are (``core.outputs``).
            tally: Counts the task's own figure, or None.

        Raises:
            UntrustedInputError: If it is an engine that is not to be trusted.
        """
        self.subject, self._kinds, self._tally = subject, kinds, tally
        self._runner: Runner | None = None
        self._reason: str | None = None
        self._counts = {name: _Count(kind) for name, kind in kinds.items()}
        self._right: list[Array] = []
        self._kept: list[Array] = []
        try:
            self._runner = subject.open()
        except DeviceError as error:
            self._reason = str(error)

    def add(
        self,
        images: Any,
        labels: Array | None,
        answers: Mapping[str, Mapping[str, Array]],
        told: str | None,
    ) -> None:
        """Runs a batch and compares it with what the torch networks answer.

        Args:
            images: Inputs ``(n, C, H, W)``, or several (``core.inputs``).
            labels: The right classes ``(n,)``, or ``(n, H, W)``, or None.
            answers: What every torch network answers, by the outputs' names.
            told: The output that the labels are about, or None.
        """
        if self._runner is None:
            return
        try:
            outputs = infer_all(self._runner, images)
        except DeviceError as error:
            self._reason = str(error)
            self.close()
            return
        reference = answers[self.subject.network]
        if self.subject.network == "merged":
            self._kept.append(agreements_of(answers["original"], outputs, self._kinds))
        for name, kind in self._kinds.items():
            count, expected, found = self._counts[name], reference[name], outputs[name]
            count.agreeing.append(agreements(expected, found, kind))
            if kind != "indices":
                count.add(expected, found.astype(np.float64))
        if labels is not None and told is not None:
            self._right.append(right(outputs[told], labels))
        if self._tally is not None:
            self._tally.update({name: outputs[name] for name in self._kinds}, labels)

    def result(self) -> Comparison:
        """Returns what was found on all batches so far."""
        subject = self.subject
        if self._reason is not None:
            return Comparison(subject.name, subject.network, self._reason)
        counts = self._counts
        each = [np.concatenate(count.agreeing) for count in counts.values()]
        return Comparison(
            name=subject.name,
            network=subject.network,
            max_abs=max(count.max_abs for count in counts.values()),
            max_rel=max(count.max_rel for count in counts.values()),
            agreement=float(np.min(each, axis=0).mean()),
            kept=share(self._kept),
            accuracy=share(self._right),
            metric=None if self._tally is None else self._tally.compute(),
            tolerance=subject.tolerance,
            outputs={n: c.to_json() for n, c in counts.items()} if len(counts) > 1 else {},
        )

    def close(self) -> None:
        """Frees the subject; harmless when called twice."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None


class _Count:
    """What was found of one output."""

    def __init__(self, kind: Kind) -> None:
        self.max_abs = 0.0
        self.scale = LEAST_PROBABILITY if kind == "probabilities" else 0.0
        self.agreeing: list[Array] = []

    def add(self, expected: Array, found: Array) -> None:
        finite = bool(np.isfinite(found).all())
        largest = float(np.abs(found - expected).max()) if finite else math.inf
        self.max_abs = max(self.max_abs, largest)
        self.scale = max(self.scale, float(np.abs(expected).max()))

    @property
    def max_rel(self) -> float:
        return self.max_abs / self.scale if self.scale else self.max_abs

    def to_json(self) -> Json:
        finite = math.isfinite(self.max_abs)
        return {
            "max_abs": self.max_abs if finite else None,
            "max_rel": self.max_rel if finite else None,
            "agreement": share(self.agreeing),
        }


def share(hits: Sequence[Array]) -> float | None:
    """Returns the mean of the hits, truth values or shares, of all batches, or None."""
    every = np.concatenate([np.empty(0), *hits])
    return float(every.mean()) if len(every) else None


def infer_all(runner: Runner, images: Any) -> dict[str, Array]:
    """Returns all outputs by name for all images, run in batches of the network's own size.

    Args:
        runner: The network.
        images: Inputs ``(N, C, H, W)``, or several (``core.inputs``) in the order of its own.
    """
    names, (batch, *_) = list(runner.input_shapes), next(iter(runner.input_shapes.values()))
    rows: dict[str, list[Array]] = {name: [] for name in runner.output_names}
    for chunk in chunks(images, batch):
        count = len(chunk)
        filled = parts_of(mapped(partial(_filled, batch), chunk))
        for name, output in runner.infer(dict(zip(names, filled, strict=True))).items():
            rows[name].append(output[:count])
    return {name: np.concatenate(found) for name, found in rows.items()}


def _filled(batch: int, rows: Array) -> Array:
    return np.concatenate([rows, rows[-1:].repeat(batch - len(rows), axis=0)])
