"""How far ``rules="full"`` looks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on candidates, beyond which none was ever worth its latency.

    Attributes:
        max_units: Longest block, in units.
        max_kernel: Largest kernel of a merged convolution, per axis, in taps it spans.
        kernels: Square kernels that are fitted.
    """

    max_units: int = 6
    max_kernel: int = 7
    kernels: tuple[int, ...] = (1, 3, 5, 7)


PAPER = Limits(max_units=10**6, max_kernel=10**6, kernels=())
"""The published method merges as far as its blocks allow, and fits nothing."""
