"""Whether answers are the same, are right, and what counts them (kinds: ``core.outputs``).

Two networks give the same answer by one rule for every kind of output:

============================  ======================================================================
``classes``, ``(N, C)``       the same top-1 class
``classes``, ``(N, C, …)``    dense, at every pixel: the same top-1 class, and a difference over all
                              channels of at most half the root mean square of the reference; the
                              share of such pixels
``labels``                    the same sign; the share of such labels
``probabilities``             the same side of one half, and within a tenth; the share of such ones
``indices``                   the same number; the share of such numbers
``values``                    each within a tenth of the scale, and of the same sign unless it is
                              within a thousandth of it; the share of such numbers. The scale is the
                              root mean square of the reference: of each column of ``(N, C)``, whose
                              quantities may be of different sizes, and of all else together
============================  ======================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trt_layermerge.core.outputs import Kind, Kinds
from trt_layermerge.errors import CorruptInputError

Array: TypeAlias = NDArray[Any]

NUMBER, SIGN, DENSE = 0.1, 1e-3, 0.5
"""Largest difference over the scale: of a number, of one whose sign changes, of a pixel."""

TINIEST = 1e-30
"""Least probability, and least size of an output, that is told from 0."""

LEAST_PROBABILITY = 3e-3
"""What the largest of many probabilities counts as at least, where differences are held against it:
libraries compute sigmoids to some 1e-7, and a thousandth of less than this is not to be had."""

VOID = 255
"""Label of a pixel that belongs to no class, as data sets of segmentation have it."""


def agreements(reference: Array, found: Array, kind: Kind) -> NDArray[np.float64]:
    """Returns how far every image's answer is the reference's, ``(N,)``, from 0 to 1.

    Args:
        reference: Outputs of the one network, ``(N, ...)``.
        found: Those of the other, of the same shape; what is not finite agrees with nothing.
        kind: What they are.
    """
    if len(reference) == 0:
        return np.zeros(0)
    expected, given = (np.asarray(a, np.float64) for a in (reference, found))
    if kind == "classes":
        same = _same_classes(expected, given)
    elif kind == "labels":
        same = ((given > 0) == (expected > 0)) & np.isfinite(given)
    elif kind == "probabilities":
        same = ((given > 0.5) == (expected > 0.5)) & (np.abs(given - expected) <= NUMBER)
    elif kind == "indices":
        same = given == expected
    else:
        same = _near(expected, given)
    shares: NDArray[np.float64] = same.reshape(len(same), -1).mean(1)
    return shares


def agreements_of(
    reference: Mapping[str, Array], found: Mapping[str, Array], kinds: Kinds
) -> NDArray[np.float64]:
    """Returns the same of networks with several outputs, ``(N,)``: by the one that agrees least.

    Args:
        reference: Outputs of the one network by name.
        found: Those of the other.
        kinds: What they are.
    """
    each = [agreements(reference[name], found[name], kind) for name, kind in kinds.items()]
    least: NDArray[np.float64] = np.min(each, axis=0)
    return least


def probabilities(logits: Array) -> Array:
    """Returns the softmax over the classes, float64, of the shape of the logits ``(N, C, ...)``."""
    shifted = np.asarray(logits, np.float64)
    powers = np.exp(shifted - shifted.max(1, keepdims=True))
    shares: Array = powers / powers.sum(1, keepdims=True)
    return shares


def distances(reference: Array, found: Array, kind: Kind) -> NDArray[np.float64]:
    """Returns how far every image's output is from the reference's, ``(N,)``; 0 is equal.

    Of ``classes`` the Kullback-Leibler divergence of the probabilities, in nats, the mean over the
    pixels of dense outputs; of ``probabilities`` that of each yes and no, the mean over them; of
    all others the norm of the difference over the reference's.

    Args:
        reference: Outputs of the one network, ``(N, ...)``.
        found: Those of the other, of the same shape; what is not finite is infinitely far.
        kind: What they are.
    """
    rows = len(reference)
    expected, given = (np.asarray(a, np.float64) for a in (reference, found))
    finite = np.isfinite(given).reshape(rows, -1).all(1)
    given = np.where(np.isfinite(given), given, 0)
    if kind == "classes":
        p, q = (np.log(np.maximum(probabilities(a), TINIEST)) for a in (expected, given))
        far = (np.exp(p) * (p - q)).sum(1).reshape(rows, -1).mean(1).clip(min=0)
    elif kind == "probabilities":
        far = yes_no(expected, given).reshape(rows, -1).mean(1)
    else:
        apart, size = (
            np.sqrt((a.reshape(rows, -1) ** 2).sum(1)) for a in (given - expected, expected)
        )
        far = apart / np.maximum(size, TINIEST)
    told: NDArray[np.float64] = np.where(finite, far, np.inf)
    return told


def yes_no(expected: Array, given: Array) -> NDArray[np.float64]:
    """Returns the Kullback-Leibler divergence of each probability of a yes, in nats."""
    p, q = (np.asarray(a, np.float64) for a in (expected, given))
    told: NDArray[np.float64] = sum(
        a * (np.log(np.maximum(a, TINIEST)) - np.log(np.maximum(b, TINIEST)))
        for a, b in ((p, q), (1 - p, 1 - q))
    )
    return told


def right(outputs: Array, labels: Array) -> NDArray[np.float64]:
    """Returns whether the largest logit of every image is that of its label, ``(N,)``: 0 or 1.

    Of labels for every pixel, the share of the pixels; those that ``VOID`` marks do not count.

    Args:
        outputs: Logits ``(N, C)``, or ``(N, C, H, W)``.
        labels: ``(N,)``, or ``(N, H, W)``.
    """
    hits: NDArray[np.float64] = np.asarray(outputs.argmax(1) == labels, np.float64)
    if labels.ndim == 1:
        return hits
    counted = labels != VOID
    known = np.maximum(counted.reshape(len(labels), -1).sum(1), 1)
    shares: NDArray[np.float64] = (hits * counted).reshape(len(labels), -1).sum(1) / known
    return shares


def _same_classes(expected: Array, given: Array) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = given.argmax(1) == expected.argmax(1)
    same &= np.isfinite(given).all(1)
    if expected.ndim > 2:
        distance = np.sqrt(((given - expected) ** 2).sum(1))
        same &= distance <= DENSE * np.sqrt((expected**2).sum(1).mean())
    return same


def _near(expected: Array, given: Array) -> NDArray[np.bool_]:
    rows = 0 if expected.ndim == 2 else None
    scale = np.sqrt((expected**2).mean(rows))
    distance = np.abs(given - expected)
    near = distance <= NUMBER * scale  # false for nan
    same: NDArray[np.bool_] = (distance <= SIGN * scale) | ((given > 0) == (expected > 0))
    same &= near
    return same


def check_labels(labels: Any, classes: int) -> None:
    """Checks that every label is one of the network's classes.

    Args:
        labels: Tensor or array ``(n,)``, or ``(n, H, W)`` with one for every pixel, of which those
            that are ``VOID`` count for nothing.
        classes: How many the network tells apart.

    Raises:
        CorruptInputError: If one is not.
    """
    known = labels if labels.ndim == 1 else labels[labels != VOID]
    if not len(known):
        return
    smallest, largest = int(known.min()), int(known.max())
    if not 0 <= smallest <= largest < classes:
        raise CorruptInputError(
            f"an image has the label {smallest if smallest < 0 else largest}, but the network "
            f"tells {classes} classes apart, counted from 0; number the labels (or the class "
            "folders) as the network does"
        )


class Tally(Protocol):
    """Counts what a network answers, and says in the end how good that was."""

    def update(self, outputs: Mapping[str, Any], labels: Any) -> None:
        """Counts a batch.

        Args:
            outputs: Arrays or tensors by name, ``(n, ...)``.
            labels: ``(n,)``, or of every pixel ``(n, H, W)``, or None.
        """
        ...

    def compute(self) -> float:
        """Returns the figure of all batches so far; higher is better."""
        ...


Judge: TypeAlias = Callable[[], Tally]
"""Begins to count anew."""
