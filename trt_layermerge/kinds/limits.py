"""How far candidates are looked for, and which are too large to fit."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on candidates of ``rules="full"``, beyond which none was ever worth its latency.

    Attributes:
        max_units: Longest block, in units; a branch that is not understood may be longer.
        max_kernel: Largest kernel of a merged convolution, per axis, in taps it spans.
        kernels: Square kernels that are fitted.
        lone: Whether ``compose`` also leaves out a convolution that stands alone between walls, as
            the published rules do with that of an upsampler. (Otherwise ``identity`` does.)
    """

    max_units: int = 6
    max_kernel: int = 7
    kernels: tuple[int, ...] = (1, 3, 5, 7)
    lone: bool = False


PAPER = Limits(max_units=10**6, max_kernel=10**6, kernels=(), lone=True)
"""The published method merges as far as its blocks allow, and fits nothing."""

FIT_BYTES = 1 << 30
"""Largest matrix of second moments, in float64, that least squares may gather for one convolution:
11,585 unknowns an output channel if it is dense. Solving holds two such matrices."""


def fit_refusal(groups: int, unknowns: int) -> str | None:
    """Returns why a convolution is too large to be fitted by least squares, or None if it is not.

    Args:
        groups: Its channel groups, each fitted by itself.
        unknowns: Weights of one output channel: C_in / groups · kh · kw.
    """
    needed = 8 * groups * unknowns**2
    if needed <= FIT_BYTES:
        return None
    pairs = ([f"{size / 2**30:.{digits}f}" for size in (needed, FIT_BYTES)] for digits in count(1))
    found, limit = next(pair for pair in pairs if pair[0] != pair[1])
    return (
        f"a least-squares fit of {unknowns} weights an output channel needs {found} GiB, and the "
        f"limit is {limit} GiB"
    )
