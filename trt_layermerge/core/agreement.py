"""Whether two networks give the same answer: one rule, by the shape of their outputs.

================  ==================================================================================
``(N, C)``        the same top-1 class
``(N,)``,         one number: within a tenth of the scale, and of the same sign unless it is within
``(N, 1)``        a thousandth of it; the scale is the root mean square of the reference
``(N, C, …)``     dense, at every pixel: the same top-1 class, and a difference over all channels of
                  at most half the root mean square of the reference; the share of such pixels
``(N, 1, …)``     one number at every pixel; the share of the pixels that agree
================  ==================================================================================

Shapes do not tell several regressions or labels in ``(N, C)`` from classes: these are read as
classes.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

NUMBER, SIGN, DENSE = 0.1, 1e-3, 0.5
"""Largest difference over the scale: of a number, of one whose sign changes, of a pixel."""


def agreements(reference: Array, found: Array) -> NDArray[np.float64]:
    """Returns how far every image's answer is the reference's, ``(N,)``, from 0 to 1.

    Args:
        reference: Outputs of the one network, ``(N, ...)``.
        found: Those of the other, of the same shape; what is not finite agrees with nothing.
    """
    if len(reference) == 0:
        return np.zeros(0)
    expected, given = (np.asarray(a, np.float64) for a in (reference, found))
    if not classes(expected):
        expected, given = (a.reshape(len(a), -1) for a in (expected, given))
        near = _within(np.abs(given - expected), expected, NUMBER)
        tiny = _within(np.abs(given - expected), expected, SIGN)
        same = near & (tiny | ((given > 0) == (expected > 0)))
    else:
        same = (given.argmax(1) == expected.argmax(1)) & np.isfinite(given).all(1)
        if expected.ndim > 2:
            distance = np.sqrt(((given - expected) ** 2).sum(1))
            same &= _within(distance, np.sqrt((expected**2).sum(1)), DENSE)
    shares: NDArray[np.float64] = same.reshape(len(same), -1).mean(1)
    return shares


def agreement(reference: Array, found: Array) -> float:
    """Returns the mean of ``agreements``: the share of the same answers."""
    return float(agreements(reference, found).mean())


def classes(outputs: Array) -> bool:
    """Returns whether outputs tell classes apart, ``(N, C, ...)`` with C of at least 2."""
    return outputs.ndim > 1 and outputs.shape[1] > 1


def _within(difference: Array, reference: Array, share: float) -> NDArray[np.bool_]:
    scale = np.sqrt((reference**2).mean())
    result: NDArray[np.bool_] = difference <= share * scale  # false for nan
    return result
