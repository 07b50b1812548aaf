"""Whole networks measured → block latencies that add up to whole networks.

A block timed alone reads and writes its maps in the layout of the outside world and from cold
memory, and pays for starting a run; inside a network it does neither. So its cost there is taken as

    w_s = t_s · (1 + d_s) − start − read · in_s − write · out_s        T = overhead + Σ w_s

with t_s the latency alone, in_s and out_s the elements of its maps, and the four named unknowns not
negative. All unknowns have normal priors around zero, and relative errors of measurement are normal
too: with few networks they stay near zero, with many they follow the data. The deviations d_s are
integrated out (Bayesian linear regression; Rasmussen and Williams 2006, section 2.7), which leaves
a least-squares problem with four signs for the rest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import spearmanr

from trt_layermerge.core.conv import AddSpec, Spec
from trt_layermerge.core.device import Precision
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.errors import DeviceError, UsageError

MEASUREMENT_ERROR = 0.015
"""Relative standard error of one measured network."""

SHARED_SPREAD = 0.3
"""Prior share of a network's latency that each of the four named unknowns explains."""

SPEC_SPREAD = 0.05
"""Prior relative deviation of single blocks."""

LEAST_SHARE = 0.1
"""A block inside a network is never taken to cost less than this share of what it costs alone."""

SETTLED = 0.03
"""Error of the worst network left out of a fit below which more of them tell little."""

_Floats: TypeAlias = NDArray[np.float64]
_FEWEST = 3
_SIGNS = np.array([1.0, -1.0, -1.0, -1.0])


@dataclass(frozen=True, slots=True)
class Observation:
    """One whole network that was measured.

    Attributes:
        specs: Everything that it runs and the table knows, repetitions included.
        ms: Its latency.
        inside: What of these is counted twice, as part of a piece and by itself, though it runs
            once or not at all.
    """

    specs: tuple[Spec, ...]
    ms: float
    inside: tuple[Spec, ...] = ()

    @property
    def counts(self) -> Counter[Spec]:
        """How often each spec counts; less than never where a piece runs without it."""
        counts = Counter(self.specs)
        counts.subtract(self.inside)
        return counts


@dataclass(frozen=True)
class _Corrections:
    """Fitted unknowns: the four named ones, as they add to a latency, and deviations by spec."""

    overhead_ms: float
    traits_ms: _Floats
    deviations: Mapping[Spec, float]

    def cost_ms(self, spec: Spec, alone_ms: float) -> float:
        """Returns the latency of a block inside a network."""
        deviation = self.deviations.get(spec, 0.0)
        cost = alone_ms * (1 + deviation) + float(self.traits_ms @ _traits(spec))
        return max(cost, LEAST_SHARE * alone_ms)

    def network_ms(self, observation: Observation, alone: Mapping[Spec, float]) -> float:
        """Returns the predicted latency of a whole network."""
        costs = (n * self.cost_ms(s, alone[s]) for s, n in observation.counts.items())
        return self.overhead_ms + sum(costs)


def fit_latency(
    table: LatencyTable, observations: Sequence[Observation], precision: Precision, batch: int
) -> LatencyTable:
    """Returns the table with the latencies that blocks have inside a network, and an overhead.

    Failed entries stay infinite; those of other precisions and batches stay as they are. ``notes``
    get what was fitted under ``fit``: relative errors are those of networks left out of the fit,
    and None with fewer than three networks.

    Args:
        table: Blocks measured alone.
        observations: Whole networks measured on the same device.
        precision: Precision of all of them.
        batch: Batch of all of them.

    Raises:
        UsageError: If there is no network, none has a block, or one has a block that is not in the
            table.
        DeviceError: If one contains a block that failed alone.
    """
    if not observations:
        raise UsageError("latencies are fitted to measured networks, but none was given")
    alone = {spec: table[spec, precision, batch] for o in observations for spec in o.counts}
    if not alone:
        raise UsageError("latencies are fitted to blocks, but no measured network has one")
    failed = [str(spec) for spec, ms in alone.items() if not math.isfinite(ms)]
    if failed:
        raise DeviceError(
            f"a measured network contains {failed[0]}, which could not be timed alone; the table "
            "says why: mend it, or choose another backend (--backend)"
        )
    corrections = _fit(observations, alone)
    costs = {
        key: corrections.cost_ms(key[0], entry.ms)
        for key, entry in table.entries.items()
        if key[1:] == (precision, batch) and math.isfinite(entry.ms)
    }
    notes = {**table.notes, "fit": _left_out_errors(observations, alone)}
    return table.with_costs(costs, corrections.overhead_ms, notes)


def settled(table: LatencyTable) -> bool:
    """Whether a fitted table predicts each of its networks well by the others."""
    worst = table.notes["fit"]["worst_error"]
    return worst is not None and worst <= SETTLED


def _fit(observations: Sequence[Observation], alone: Mapping[Spec, float]) -> _Corrections:
    """Returns the corrections that the networks speak for.

    In relative units, y = X b + S d + noise, with b ≥ 0 after signs; with d integrated out, y has
    mean X b and covariance K = τ² S Sᵀ + σ² I, and d is τ² Sᵀ K⁻¹ (y − X b) on average.
    """
    counted = [o.counts for o in observations]
    specs = list(dict.fromkeys(spec for one in counted for spec in one))
    counts = np.array([[one[s] for s in specs] for one in counted])
    measured = np.array([o.ms for o in observations])
    single = counts * np.array([alone[s] for s in specs])
    traits = np.column_stack(
        [np.ones(len(measured)), counts @ np.array([_traits(s) for s in specs])]
    )
    scale = _SIGNS * measured.mean() / np.maximum(traits.mean(axis=0), 1.0)

    design, share = traits * scale / measured[:, None], single / measured[:, None]
    target = 1 - share.sum(axis=1)
    covariance = SPEC_SPREAD**2 * share @ share.T + MEASUREMENT_ERROR**2 * np.eye(len(measured))
    factor = np.linalg.cholesky(covariance)
    prior = np.eye(len(scale)) / SHARED_SPREAD
    named, _ = nnls(
        np.vstack([np.linalg.solve(factor, design), prior]),
        np.append(np.linalg.solve(factor, target), np.zeros(len(scale))),
    )
    rest = np.linalg.solve(covariance, target - design @ named)
    deviations = SPEC_SPREAD**2 * share.T @ rest
    overhead_ms, *traits_ms = map(float, scale * named)
    by_spec = dict(zip(specs, map(float, deviations), strict=True))
    return _Corrections(overhead_ms, np.array(traits_ms), by_spec)


def _left_out_errors(
    observations: Sequence[Observation], alone: Mapping[Spec, float]
) -> dict[str, Any]:
    """Returns how well each network is predicted by a fit to all others."""
    count = len(observations)
    if count < _FEWEST:
        return {"networks": count, "median_error": None, "worst_error": None, "spearman": None}
    predicted = [
        _fit([*observations[:i], *observations[i + 1 :]], alone).network_ms(observation, alone)
        for i, observation in enumerate(observations)
    ]
    measured = [o.ms for o in observations]
    errors = np.abs(np.array(predicted) / measured - 1)
    return {
        "networks": count,
        "median_error": float(np.median(errors)),
        "worst_error": float(errors.max()),
        "spearman": rank_correlation(predicted, measured),
    }


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Returns Spearman's rank correlation; 0 if one of them is constant."""
    if min(len(set(first)), len(set(second))) < 2:
        return 0.0
    return float(spearmanr(first, second).statistic)


def _traits(spec: Spec) -> _Floats:
    """Returns what start, read and write multiply: one, elements read, elements written."""
    if isinstance(spec, AddSpec):
        size = spec.channels * spec.height * spec.width
        return np.array([1.0, size, size])
    rows, columns = spec.out_size
    read = spec.in_channels * spec.height * spec.width
    return np.array([1.0, read, spec.out_channels * rows * columns])
